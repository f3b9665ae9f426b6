// Writes the documents of the schema of a live database, each below FOLDER under its path in the repository:
//
//     node write.mjs DATABASE_URL DUMP FOLDER
//
// DUMP is what `pg_dump --schema-only` says of its tables. DBML comes from the dump by DBML's own importer, the
// diagrams from the DBML's model, the Prisma schema from the database by Prisma's own introspection.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

import { instance as graphviz } from '@viz-js/viz'

import { readModel, toDbml } from './dbml.mjs'
import { toDot, toMermaid } from './diagram.mjs'
import { pull } from './prisma.mjs'

const [url, dump, folder] = process.argv.slice(2)
const made = 'Written by `make schema-docs` from the live schema; do not edit.'

const sql = readFileSync(dump, 'utf8')
const model = readModel(sql)
const files = {
  'spec/odooops-sh/schema.dbml': `// ${made}\n\n${toDbml(model, sql)}`,
  'spec/odooops-sh/schema.mmd': `%% ${made}\n\n${toMermaid(model)}`,
  'docs/schema.prisma': `// ${made}\n\n${await pull(url, ['auth', 'ops'])}`,
  'docs/schema.svg': (await graphviz())
    .renderString(toDot(model), { format: 'svg' })
    // boxes made to fit Courier fit any monospaced font that the viewer has
    .replaceAll(/font-family="Courier[^"]*"/g, 'font-family="Liberation Mono,DejaVu Sans Mono,Menlo,monospace"'),
}
for (const [name, text] of Object.entries(files)) {
  mkdirSync(dirname(join(folder, name)), { recursive: true })
  writeFileSync(join(folder, name), `${text.trimEnd()}\n`)
}

// What `prisma db pull` writes. That command needs an engine which is downloaded when it first runs; the same
// engine comes as WebAssembly from the registry, and reads the database through Prisma's adapter for pg.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

import { PrismaPg } from '@prisma/adapter-pg'
import { bindMigrationAwareSqlAdapterFactory, ColumnTypeEnum } from '@prisma/driver-adapter-utils'
import * as bindings from '@prisma/schema-engine-wasm/schema_engine_bg'
import pg from 'pg'

const { CHAR, TIME } = pg.types.builtins

/** The Prisma schema of a database's namespaces. */
export async function pull(url, namespaces) {
  await start()
  const empty = `generator client {
  provider        = "prisma-client"
  output          = "../generated/prisma"
  previewFeatures = ["partialIndexes"]
}

datasource db {
  provider = "postgresql"
  schemas  = [${namespaces.map((name) => `"${name}"`).join(', ')}]
}
`
  const pool = new CatalogPool({ connectionString: url })
  try {
    const adapter = bindMigrationAwareSqlAdapterFactory(new CatalogAdapter(pool))
    const engine = await bindings.SchemaEngine.new({ datamodels: [['schema.prisma', empty]] }, () => {}, adapter)
    const { schema } = await engine.introspect({
      schema: { files: [{ path: 'schema.prisma', content: empty }] },
      baseDirectoryPath: '.', force: false, compositeTypeDepth: -1, namespaces,
    })
    return schema.files[0].content
  } finally {
    await pool.end()
  }
}

async function start() {
  const module = createRequire(import.meta.url).resolve('@prisma/schema-engine-wasm')
  const code = await WebAssembly.compile(readFileSync(module.replace('schema_engine.js', 'schema_engine_bg.wasm')))
  globalThis.PRISMA_WASM_PANIC_REGISTRY = { set_message: console.error }
  const { exports } = await WebAssembly.instantiate(code, { './schema_engine_bg.js': bindings })
  bindings.__wbg_set_wasm(exports)
  exports.__wbindgen_start()
}

// The adapter refuses the catalogue's own type "char" (prisma/orm#27403), which the engine asks for. So such a
// column passes it as a `time`, which no catalogue has, and is given its true type afterwards.

class CatalogPool extends pg.Pool {
  async query(...args) {
    const result = await super.query(...args)
    for (const field of result.fields) if (field.dataTypeID === CHAR) field.dataTypeID = TIME
    return result
  }
}

class CatalogAdapter extends PrismaPg {
  async connect() {
    const adapter = await super.connect()
    const query = adapter.queryRaw.bind(adapter)
    adapter.queryRaw = async (question) => {
      const answer = await query(question)
      const typed = (type) => (type === ColumnTypeEnum.Time ? ColumnTypeEnum.Character : type)
      return { ...answer, columnTypes: answer.columnTypes.map(typed) }
    }
    return adapter
  }
}

// Reads each file with the program that it is for, and fails where that program refuses it:
//
//     node check.mjs FILE...

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { extname } from 'node:path'

import { Parser } from '@dbml/core'
import mermaid from 'mermaid'

const prisma = createRequire(import.meta.url)('@prisma/prisma-schema-wasm')

const readers = {
  '.dbml': (text) => new Parser().parse(text, 'dbmlv2'),
  '.mmd': (text) => mermaid.parse(text),
  // what `prisma validate` calls
  '.prisma': (text) => prisma.validate(JSON.stringify({ prismaSchema: [['schema.prisma', text]], noColor: true })),
}

for (const file of process.argv.slice(2)) {
  try {
    await readers[extname(file)](readFileSync(file, 'utf8'))
  } catch (error) {
    console.error(`${file}: ${error.message ?? JSON.stringify(error.diags)}`)
    process.exitCode = 1
  }
}

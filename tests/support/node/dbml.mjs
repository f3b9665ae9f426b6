// A dump of tables -> the model of @dbml/core -> DBML.

import { ModelExporter, Parser } from '@dbml/core'

const WORDS = { 'timestamp with time zone': 'timestamptz' } // the importer cuts the long name to `timestamp`

/** The tables and references of a dump, and which columns are identities, which the importer passes over. */
export function readModel(sql) {
  for (const [long, short] of Object.entries(WORDS)) sql = sql.replaceAll(long, short)
  const model = new Parser().parse(sql, 'postgres')
  for (const [, table, column] of sql.matchAll(/^ALTER TABLE (\S+) ALTER COLUMN (\S+) ADD GENERATED/gm)) {
    const { fields } = tables(model).find((each) => fullName(each) === table)
    fields.find((each) => each.name === column).increment = true
  }
  return model
}

/** DBML; a partial index carries its condition as a note, since DBML has no word for it. */
export function toDbml(model, sql) {
  let text = ModelExporter.export(model, 'dbml')
  for (const [, name, condition] of sql.matchAll(/^CREATE (?:UNIQUE )?INDEX (\S+) .* WHERE (.*);$/gm)) {
    text = text.replace(`name: "${name}"]`, () => `name: "${name}", note: ${quoted(`where ${condition}`)}]`)
  }
  return text
}

export const tables = (model) => model.schemas.flatMap((schema) => schema.tables)

export const references = (model) =>
  model.schemas
    .flatMap((schema) => schema.refs)
    .map(({ endpoints }) => {
      const [child, parent] = endpoints[0].relation.endsWith('*') ? endpoints : endpoints.toReversed()
      return { child, parent }
    })

export const fullName = (table) => `${table.schema.name}.${table.name}`

const quoted = (text) => `'''${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'''`

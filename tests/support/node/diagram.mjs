// The model of @dbml/core -> an entity relationship diagram, as Mermaid and as Graphviz.

import { fullName, references, tables } from './dbml.mjs'

const CROW = { // Mermaid's, left and right, and Graphviz's
  '0..*': { left: '}o', right: 'o{', arrow: 'crowodot' },
  '1..*': { left: '}|', right: '|{', arrow: 'crowtee' },
  '0..1': { left: '|o', right: 'o|', arrow: 'teeodot' },
  1: { left: '||', right: '||', arrow: 'teetee' },
}
const COLORS = { auth: '#8a8f98', ops: '#2f5d8a' }

export function toMermaid(model) {
  const entities = tables(model).map((table) => {
    const columns = columnsOf(model, table).map(({ type, name, keys, nullable }) =>
      `        ${[type, name, keys.join(', '), nullable ? '"null"' : ''].filter(Boolean).join(' ')}`)
    return [`    ${entity(table.schema.name, table.name)} {`, ...columns, '    }'].join('\n')
  })
  const lines = references(model).map(({ parent, child }) => {
    const arrow = `${CROW[parent.relation].left}--${CROW[child.relation].right}`
    const [from, to] = [parent, child].map((end) => entity(end.schemaName, end.tableName))
    return `    ${from} ${arrow} ${to} : "${child.fieldNames.join(', ')}"`
  })
  return ['erDiagram', ...entities, ...lines].join('\n')
}

export function toDot(model) {
  const nodes = tables(model).map((table) => {
    const own = new Map( // a loop would run through the neighbours: it is said in words
      referencesOf(model, table)
        .filter(toItself)
        .map(({ parent, child }) => [child.fieldNames.at(-1), ` to ${parent.fieldNames.at(-1)}`]),
    )
    const rows = columnsOf(model, table).map(({ type, name, keys, nullable }) =>
      `<tr><td align="left" port="${name}_in">${name}</td>` +
      `<td align="left"><font color="#5b626d">${type}${nullable ? ' null' : ''}</font></td>` +
      `<td align="right" port="${name}_out"><font color="#2f5d8a">${keys.join(' ') || ' '}` +
      `${own.get(name) ?? ''}</font></td></tr>`)
    const head = `<tr><td colspan="3" bgcolor="${COLORS[table.schema.name]}">` +
      `<font color="white"><b>${title(table.schema.name, table.name)}</b></font></td></tr>`
    return `"${fullName(table)}" [label=<<table border="1" color="#b8bec8" cellborder="0" cellspacing="0" ` +
      `cellpadding="3" bgcolor="white">${head}${rows.join('')}</table>>]`
  })
  const edges = references(model).filter((reference) => !toItself(reference)).map(({ parent, child }) => {
    const [from, to] = [parent, child].map((end) => `"${end.schemaName}.${end.tableName}":${end.fieldNames.at(-1)}`)
    const arrows = `arrowtail=${CROW[parent.relation].arrow} arrowhead=${CROW[child.relation].arrow}`
    return `${from}_out:e -> ${to}_in:w [${arrows}]`
  })
  return `digraph "The schema ops" {
    graph [rankdir=LR bgcolor="white" pad=0.3 nodesep=0.35 ranksep=1.1]
    node [shape=plain fontname="Courier" fontsize=11]
    edge [dir=both color="#5b626d" arrowsize=0.8]
    ${[...nodes, ...edges].join('\n    ')}
  }`
}

const title = (schema, name) => (schema === 'ops' ? name : `${schema}.${name}`)

const entity = (schema, name) => (schema === 'ops' ? name : `"${title(schema, name)}"`)

const referencesOf = (model, table) =>
  references(model).filter(({ child }) => `${child.schemaName}.${child.tableName}` === fullName(table))

const toItself = ({ parent, child }) =>
  parent.schemaName === child.schemaName && parent.tableName === child.tableName

function columnsOf(model, table) {
  const primary = new Set(
    table.indexes.filter((index) => index.pk).flatMap((index) => index.columns.map((column) => column.value)),
  )
  const foreign = new Set(referencesOf(model, table).flatMap(({ child }) => child.fieldNames))
  return table.fields.map((field) => ({
    name: field.name,
    type: field.type.type_name,
    nullable: !field.not_null && !field.pk && !primary.has(field.name),
    keys: [
      (field.pk || primary.has(field.name)) && 'PK',
      foreign.has(field.name) && 'FK',
      field.unique && 'UK',
    ].filter(Boolean),
  }))
}

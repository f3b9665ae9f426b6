// What a client relies on in lib/database.types.ts. The tests compile it; it never runs.

import type { Database, Tables, TablesInsert } from '../../../lib/database.types.ts'

type Ops = { schema: 'ops' }

export const queued: TablesInsert<Ops, 'runs'> = { project_id: 'p', workflow_id: 'w', run_number: 1 }
export const number: number = ({} as Tables<Ops, 'runs'>).run_number
export const finished: string | null = ({} as Tables<Ops, 'runs'>).finished_at

type Functions = Database['ops']['Functions']
export const line: Functions['append_run_log']['Args'] = { p_run_id: 'r', p_level: 'info', p_message: 'hello' }

// @ts-expect-error there is no such column
export const wrong: TablesInsert<Ops, 'runs'> = { project_id: 'p', workflow_id: 'w', run_number: 1, state: 'queued' }
// @ts-expect-error a message is asked for
export const incomplete: Functions['append_run_log']['Args'] = { p_run_id: 'r', p_level: 'info' }

-- The project of the demo, and its workflows as deploy/tools/odoo/README.md has them. psql's variable: repository.
delete from ops.projects where slug = 'library';
insert into ops.projects (workspace_key, slug, name, odoo_version) values ('library', 'library', 'Library', '19.0');
insert into ops.workflows (project_id, workflow_type, name, git_ref, config)
select p.id, w.workflow_type, w.name, 'main', jsonb_build_object(
    'tool', 'odoo-tool', 'secrets', '["deploy_key", "known_hosts"]'::jsonb,
    'cache', '[{"name": "odoo", "path": "/cache"}]'::jsonb, 'command', w.command || jsonb_build_array('--repository', :'repository')
) || w.more
from ops.projects as p
cross join (
    values
    ('build', 'build', '["build"]'::jsonb, '{}'::jsonb),
    ('test', 'test', '["test"]', jsonb_build_object('services', jsonb_build_array(jsonb_build_object(
        'name', 'db', 'tool', 'odoo-postgres', 'command', '["--trust"]'::jsonb,
        'tmpfs', '[{"path": "/var/lib/postgresql/data", "size": "1g"}]'::jsonb))))
) as w (workflow_type, name, command, more)
where p.slug = 'library';

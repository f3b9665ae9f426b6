-- The workflows that need a production. psql's variables: host and port of its PostgreSQL.
insert into ops.workflows (project_id, workflow_type, name, git_ref, config)
select t.project_id, w.workflow_type, w.name, 'main', t.config || jsonb_build_object(
    'command', w.command || (t.config -> 'command') - 'test',
    'env', jsonb_build_object('PGHOST', :'host', 'PGPORT', :'port', 'RESTIC_REPOSITORY', '/backups'),
    'secrets', '["deploy_key", "known_hosts", "pgpassword", "restic_password"]'::jsonb,
    'volumes', '[{"name": "odoo-data", "path": "/data"}, {"name": "backups", "path": "/backups"}]'::jsonb)
from ops.workflows as t
join ops.projects as p on p.id = t.project_id and p.slug = 'library'
cross join (
    values
    ('backup', 'backup', '["backup", "--database", "prod", "--filestore", "/data/filestore/prod"]'::jsonb),
    ('deploy', 'staging', '["restore", "--database", "staging", "--filestore", "/data/filestore/staging"]'),
    ('upgrade', 'upgrade', '["upgrade", "--database", "prod"]')
) as w (workflow_type, name, command)
where t.name = 'test';

-- Drops the webhooks of forges. The role ops_webhook stays, since other databases of the cluster may use it.
--
-- Lost: the secrets of the projects. Set them again after a later `ops-worker db migrate`.

drop trigger check_changed_push on ops.projects;
drop trigger check_push on ops.projects;

drop function
    ops.receive_webhook, ops.receive_push, ops.set_webhook_secret, ops_private.set_webhook_secret,
    ops_private.receive_webhook, ops_private.receive_push, ops_private.apply_push, ops_private.cancel_branch,
    ops_private.queue_push, ops_private.body_of, ops_private.branch_of, ops_private.is_signed, ops_private.delivery_of,
    ops_private.hmac_sha256, ops_private.branch_rule, ops_private.check_push, ops_private.bad_push;
drop table ops_private.webhooks;
revoke usage on schema ops from ops_webhook;

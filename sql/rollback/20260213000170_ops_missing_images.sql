-- Drops the record of missing images. Lost: which worker could not get which image in the last minute.

drop function
    ops_private.why_image_waits, ops_private.blocked_workflows, ops_private.record_missing_image,
    ops_private.tool_image;
drop table ops_private.missing_images;

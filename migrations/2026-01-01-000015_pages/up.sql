-- What the filters of DescribeVolumes look at is in the indexes by which they walk, in the order of a page: a filter that
-- selects little of much reads an index from one end to the other, and no table.
CREATE INDEX volumes_described ON volumes (account_id, id)
    INCLUDE (state, zone, size_gib, volume_type, snapshot_id, created_at, encrypted, multi_attach, initialization_rate)
    WHERE state <> 'deleted';
DROP INDEX volumes_of_account;

CREATE INDEX attachments_described ON attachments (account_id, volume_id)
    INCLUDE (instance_id, device, state, attached_at, delete_on_termination)
    WHERE state <> 'detached';

DROP INDEX tags_of_account;
CREATE INDEX tags_of_account ON tags (account_id, resource_id, key) INCLUDE (value, resource_type);
DROP INDEX tags_by_key;
CREATE INDEX tags_by_key ON tags (account_id, key, value, resource_id) INCLUDE (resource_type);

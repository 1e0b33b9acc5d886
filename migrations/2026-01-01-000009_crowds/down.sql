ALTER TABLE workflows RESET (fillfactor);
DROP INDEX volumes_by_snapshot;
CREATE INDEX volumes_by_snapshot ON volumes (snapshot_id) WHERE state = 'creating';

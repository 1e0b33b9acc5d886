DROP INDEX workflows_live_of_volume;
CREATE INDEX workflows_live_of_volume ON workflows (volume_id, id) WHERE finished_at IS NULL;
DROP INDEX workflows_live;
CREATE INDEX workflows_live ON workflows (lane, not_before) WHERE finished_at IS NULL;
DROP INDEX one_live_workflow_a_lock_key;
CREATE UNIQUE INDEX one_live_workflow_a_lock_key ON workflows (lock_key) WHERE finished_at IS NULL;

-- An index of the live workflows serves only a query that says which lane, volume or lock key it is about. Else a planner that last saw
-- few live ones takes any of these for as good as the primary key, and goes through all that are live by now for each.
DROP INDEX one_live_workflow_a_lock_key;
CREATE UNIQUE INDEX one_live_workflow_a_lock_key ON workflows (lock_key) WHERE finished_at IS NULL AND lock_key IS NOT NULL;
DROP INDEX workflows_live;
CREATE INDEX workflows_live ON workflows (lane, not_before) WHERE finished_at IS NULL AND lane IS NOT NULL;
DROP INDEX workflows_live_of_volume;
CREATE INDEX workflows_live_of_volume ON workflows (volume_id, id) WHERE finished_at IS NULL AND volume_id IS NOT NULL;

DROP INDEX workflows_live;
CREATE INDEX workflows_live ON workflows (not_before) WHERE finished_at IS NULL;
ALTER TABLE workflows DROP COLUMN lane;
DROP FUNCTION lane_of(text, text);

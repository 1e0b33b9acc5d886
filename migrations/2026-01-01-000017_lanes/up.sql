-- Workflows that need the same nodes share a lane: one node that does not answer holds up those of its lanes and no others.

-- The storage node of a workflow, and the hypervisor nodes that have its volume. `key` is its lock key, `volume` its volume.
CREATE FUNCTION lane_of(key text, volume text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT concat_ws(' ',
        coalesce((SELECT node FROM snapshots WHERE id = key), (SELECT node FROM volumes WHERE id = volume)),
        (SELECT string_agg(DISTINCT i.node, ' ' ORDER BY i.node) FROM attachments a JOIN instances i ON i.id = a.instance_id
            WHERE a.volume_id = volume AND a.state <> 'detached'))
$$;

ALTER TABLE workflows ADD COLUMN lane text NOT NULL DEFAULT '';
UPDATE workflows SET lane = lane_of(lock_key, volume_id) WHERE finished_at IS NULL;
ALTER TABLE workflows ALTER COLUMN lane DROP DEFAULT;

DROP INDEX workflows_live;
CREATE INDEX workflows_live ON workflows (lane, not_before) WHERE finished_at IS NULL;

-- One sequence for every claim of every workflow: of two claims the later always has the higher generation, whatever they
-- are of, and a delegate need only compare.
CREATE SEQUENCE lease_generations;

CREATE TABLE workflows (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN
        ('create_volume', 'delete_volume', 'attach_volume', 'detach_volume', 'create_snapshot', 'delete_snapshot', 'repair_volume')),
    -- The resource it changes.
    lock_key text NOT NULL,
    -- The volume whose workflows run in the order they were enqueued.
    volume_id text NOT NULL,
    params jsonb NOT NULL,
    direction text NOT NULL DEFAULT 'forward' CHECK (direction IN ('forward', 'backward')),
    -- Forward: the highest step begun. Backward: the step to undo next; -1 when all is undone.
    step integer NOT NULL DEFAULT 0,
    -- Tries of this step that failed, and since when.
    attempts integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    not_before timestamptz NOT NULL DEFAULT now(),
    lease_owner text,
    lease_until timestamptz,
    lease_generation bigint NOT NULL DEFAULT 0,
    -- The last error, or the reason why it turned.
    error text,
    outcome text CHECK (outcome IN ('succeeded', 'undone')),
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK ((outcome IS NULL) = (finished_at IS NULL)),
    CHECK (outcome IS NULL OR (outcome = 'undone') = (direction = 'backward')),
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL))
);
CREATE UNIQUE INDEX one_live_workflow_a_lock_key ON workflows (lock_key) WHERE finished_at IS NULL;
CREATE INDEX workflows_live ON workflows (not_before) WHERE finished_at IS NULL;
CREATE INDEX workflows_live_of_volume ON workflows (volume_id, id) WHERE finished_at IS NULL;
CREATE INDEX workflows_finished ON workflows (finished_at) WHERE finished_at IS NOT NULL;

-- What happened, for the operator: one row for each thing that went otherwise than planned, and one for the end.
CREATE TABLE workflow_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow_id bigint NOT NULL REFERENCES workflows ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    generation bigint NOT NULL,
    direction text NOT NULL,
    step text NOT NULL,
    event text NOT NULL,
    detail text NOT NULL DEFAULT ''
);
CREATE INDEX workflow_events_of_workflow ON workflow_events (workflow_id, id);

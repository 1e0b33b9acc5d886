-- What each node last reported, and whether its operator wants anything new on it. Which nodes there are is the
-- configuration's to say.
CREATE TABLE nodes (
    name text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('storage', 'hypervisor')),
    zone text NOT NULL,
    -- The names of its drivers, separated by commas.
    drivers text NOT NULL DEFAULT '',
    -- Of storage nodes; the largest bigint where there is no limit.
    capacity_bytes bigint CHECK (capacity_bytes >= 0),
    free_bytes bigint CHECK (free_bytes >= 0),
    -- Whether a new volume takes room only as it is written.
    sparse boolean NOT NULL DEFAULT false,
    answered_at timestamptz,
    -- Why it did not answer when it was last asked.
    error text,
    drained boolean NOT NULL DEFAULT false
);

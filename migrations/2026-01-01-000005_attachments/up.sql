-- Every name and secret an attachment will ever need is in its row before the first side effect.
CREATE TABLE attachments (
    id uuid PRIMARY KEY,
    account_id text NOT NULL REFERENCES accounts,
    volume_id text NOT NULL REFERENCES volumes ON DELETE CASCADE,
    instance_id text NOT NULL REFERENCES instances,
    -- As the caller wrote it, and the one form that all spellings of the same name share.
    device text NOT NULL,
    device_key text NOT NULL,
    state text NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching', 'busy', 'detached')),
    delete_on_termination boolean NOT NULL DEFAULT false,
    -- Whether the caller asked to take the disk away from a guest that holds on to it.
    force boolean NOT NULL DEFAULT false,
    iqn text NOT NULL UNIQUE,
    lun integer NOT NULL CHECK (lun >= 0),
    chap_user text NOT NULL,
    -- Encrypted under the master key with the id as associated data (src/seal.rs).
    sealed_chap_secret bytea NOT NULL,
    initiator_iqn text NOT NULL,
    attached_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    detached_at timestamptz,
    -- Why it did not come about.
    reason text,
    CHECK ((state = 'detached') = (detached_at IS NOT NULL))
);
CREATE UNIQUE INDEX one_live_attachment_a_volume ON attachments (volume_id) WHERE state <> 'detached';
CREATE UNIQUE INDEX one_live_attachment_a_device ON attachments (instance_id, device_key) WHERE state <> 'detached';
CREATE INDEX attachments_detached ON attachments (detached_at) WHERE state = 'detached';

-- The owner is part of every key: no statement can reach what is another's.

CREATE TABLE responses (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When it was made or gone on from: what nobody uses is deleted.
    used_at BIGINT NOT NULL,
    model TEXT NOT NULL,
    -- As the protocol has it. Holds where `body` says something else.
    status TEXT NOT NULL,
    previous_id TEXT,
    -- Its own input: an array of items.
    input TEXT NOT NULL,
    -- The response object.
    body TEXT NOT NULL,
    -- Of tenant, id, previous_id, input and body.
    checksum TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    event_bytes BIGINT NOT NULL,
    background BIGINT NOT NULL,
    -- The request, while it has not been answered.
    request TEXT,
    request_checksum TEXT,
    -- Until when its process has the right to work on it; null once it has ended.
    lease_until BIGINT,
    owner TEXT,
    -- How often work on it has begun, but for what was given back.
    attempt BIGINT NOT NULL,
    -- How often work on it has begun. Whoever holds the lease knows it, so nobody writes who has lost it.
    run BIGINT NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX responses_by_use ON responses (used_at, tenant, bytes, event_bytes);
CREATE INDEX unfinished_responses ON responses (model, created_at) WHERE lease_until IS NOT NULL;

-- Where the items of outputs are, by which later requests may name them.
CREATE TABLE output_items (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    response_id TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX output_items_by_response ON output_items (tenant, response_id);

-- What a background response has said so far, in each run.
CREATE TABLE events (
    tenant TEXT NOT NULL,
    response_id TEXT NOT NULL,
    run BIGINT NOT NULL,
    sequence_number BIGINT NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (tenant, response_id, run, sequence_number)
);

CREATE TABLE conversations (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    used_at BIGINT NOT NULL,
    metadata TEXT NOT NULL,
    next_position BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX conversations_by_use ON conversations (used_at, tenant, bytes);

CREATE TABLE conversation_items (
    tenant TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    id TEXT NOT NULL,
    item TEXT NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (tenant, conversation_id, position)
);
CREATE UNIQUE INDEX conversation_items_by_id ON conversation_items (tenant, conversation_id, id);

-- What the processes that share a store have to agree on.
CREATE TABLE secrets (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
);

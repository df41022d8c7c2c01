-- Schema derived: what a replay of ledger.events makes again, row for row. Only the projection writes it.
create schema derived;

-- The projection's place in the log; it commits together with the rows made from the records before `next`.
create table derived.offsets (
    topic        text not null,
    partition    int not null,
    next         bigint not null check (next >= 0),
    topic_id     text not null default '',                  -- Kafka's id of the topic: a recreated log is another log (C9)
    last_sha256  bytea not null default '',                 -- of the record at next - 1
    chain        bytea not null default '',                 -- head of the hash chain over all records before next
    max_event_ms bigint not null default 0,                 -- running maximum of event times
    rejected     bigint not null default 0,                 -- events that changed nothing
    primary key (topic, partition)
);

create table derived.accounts (
    account      text not null,
    asset        text not null,
    partition    int not null,
    balance_nano bigint not null,
    entries      bigint not null,
    primary key (account, asset, partition)
);

create table derived.entries (
    partition   int not null,
    "offset"    bigint not null,
    posting     smallint not null,                          -- place within its transaction
    account     text not null,
    asset       text not null,
    amount_nano bigint not null,
    request_id  uuid,
    at_ms       bigint not null,
    primary key (partition, "offset", posting)
);
create index entries_by_request on derived.entries (request_id) where request_id is not null;

-- Of all requests, for ever: what has ended is what closes an id. Books are kept per partition, so an id that a broken
-- writer uses in two of them is two requests.
create table derived.requests (
    request_id        uuid not null,
    partition         int not null,
    wallet_id         text not null,
    status            text not null check (status in ('open', 'charged', 'failed')),
    key_id            text,                                 -- null where only its end was seen
    payer             text,
    asset             text,
    model             text,                                 -- asked for; once charged, the one that answered
    rules_version     int,
    prices            jsonb,                                -- as accepted
    rate_nano_usd     bigint,
    cap_day           date,
    hold_nano         bigint not null default 0,
    owner             text not null,
    owner_epoch       int not null,
    accepted_owner    text,
    accepted_ms       bigint,
    ended_ms          bigint,
    how               text,
    prompt_tokens     bigint not null default 0,            -- of text and of images
    completion_tokens bigint not null default 0,
    charge_nano       bigint not null default 0,            -- of whoever the rules let pay
    payer_charge_nano bigint not null default 0,            -- of `payer`: the same, or 0
    clamped           boolean not null default false,
    primary key (request_id, partition),
    check ((status = 'open') = (how is null)),
    check (charge_nano <= hold_nano or status = 'failed')
);
create index requests_open on derived.requests (request_id) where status = 'open';
create index requests_sandbox on derived.requests (cap_day) where cap_day is not null;

create table derived.credits (
    wallet_id    text not null,
    external_ref text not null,
    asset        text not null,
    amount_nano  bigint not null,
    partition    int not null,
    "offset"     bigint not null,
    primary key (wallet_id, external_ref)
);

create table derived.rejections (
    partition  int not null,
    "offset"   bigint not null,
    type       text not null,
    code       text not null,
    request_id uuid,
    primary key (partition, "offset")
);

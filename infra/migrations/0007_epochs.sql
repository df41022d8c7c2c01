-- Epochs: read models of `epoch.closed`, made from the log and from derived.entries by streams/epochs.py.
--
-- The first event of the next number counts; its row is never overwritten. Delete these rows, and they are made again.

create table derived.epochs (
    number      bigint primary key check (number >= 1),
    partition   int not null,                               -- where its event stands
    "offset"    bigint not null,
    -- What the event says:
    at_ms       bigint not null,
    cut         bigint[] not null,                          -- the next offset of each partition
    heads       text[] not null,
    roots       text[] not null,
    log_root    text not null,
    digest      text not null,
    terms       jsonb,
    payout_root text not null,
    -- What the log has at the cut, for the next epoch to go on from:
    chains      bytea[] not null,                           -- heads of the hash chains
    trees       bytea[] not null,                           -- the perfect subtrees of each partition's tree
    mismatch    text not null default ''                    -- where the event says otherwise than the log; act on none
);

create table derived.entitlements (
    epoch                bigint not null,
    provider             text not null,
    asset                text not null check (asset in ('SHIVER', 'USDC')),
    earned_nano          numeric(38, 0) not null,           -- cumulative, as all amounts; see ledger/entitlements.py
    sandbox_earned_nano  numeric(38, 0) not null,
    sandbox_payable_nano numeric(38, 0) not null,
    entitled_nano        numeric(38, 0) not null,
    debt_nano            numeric(38, 0) not null,
    recipient            text,                              -- of its leaf, or registered; null without one
    amount               numeric not null,                  -- of its leaf, in the token's smallest units; 0 without one
    waits                text not null,                     -- why it has no leaf; empty where it has one
    primary key (epoch, provider, asset)
);

-- Roots of perfect subtrees of 2^17 records of a partition, for proofs.
create table derived.tree_blocks (
    partition int not null,
    block     bigint not null,                              -- its first record is at offset block * 2^17
    root      bytea not null check (length(root) = 32),
    primary key (partition, block)
);

-- Who was registered anew within an epoch: the last provider.registered before its cut.
create table derived.recipients (
    epoch     bigint not null,
    provider  text not null,
    recipient text,
    partition int not null,
    "offset"  bigint not null,
    primary key (epoch, provider)
);

-- Every sandbox.funded, and what it came to.
create table derived.sandbox_funds (
    partition    int not null,
    "offset"     bigint not null,
    epoch        bigint not null,
    external_ref text not null,
    asset        text not null,
    amount_nano  bigint not null,
    reason       text not null,
    operator     text not null,
    approver     text,
    verdict      text not null check (verdict in ('counted', 'duplicate', 'conflict', 'needs_approval')),
    primary key (partition, "offset")
);

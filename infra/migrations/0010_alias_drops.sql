-- Top-level request parameters that an alias takes out before a request is read: for clients that send by themselves what
-- their user never asked for. Which ones may be is in schemas/droppable.py; an ingress takes out no others.
alter table state.model_aliases
    add column drops text[] not null default '{}'
        check (cardinality(drops) <= 64 and array_position(drops, null) is null);

-- Schema derived_next with the tables of derived as they are now, whatever migrations have made of them, and no rows:
-- columns, checks, keys, indexes (by their names, which later migrations may use), settings, owners, grants.
do $$
declare
    t record;
    x record;
    owner name := (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'derived');
begin
    drop schema if exists derived_next cascade;
    execute format('create schema derived_next authorization %I', owner);
    for x in select g.grantee, g.privilege_type from pg_namespace n, aclexplode(n.nspacl) g
             where n.nspname = 'derived' and g.grantee <> n.nspowner loop
        execute format('grant %s on schema derived_next to %s', x.privilege_type,
                       case when x.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(x.grantee)) end);
    end loop;
    for t in select oid, relname as name, pg_get_userbyid(relowner) as owner, reloptions, relacl, relowner
             from pg_class where relnamespace = 'derived'::regnamespace and relkind = 'r' order by relname loop
        execute format('create table derived_next.%I (like derived.%I including all excluding indexes)', t.name, t.name);
        for x in select conname, pg_get_constraintdef(oid) as def from pg_constraint
                 where conrelid = t.oid and contype in ('p', 'u', 'x') order by conname loop
            execute format('alter table derived_next.%I add constraint %I %s', t.name, x.conname, x.def);
        end loop;
        for x in select pg_get_indexdef(i.indexrelid) as def from pg_index i where i.indrelid = t.oid
                 and not exists (select from pg_constraint c where c.conindid = i.indexrelid) loop
            execute replace(x.def, format(' ON derived.%I ', t.name), format(' ON derived_next.%I ', t.name));
        end loop;
        if t.reloptions is not null then
            execute format('alter table derived_next.%I set (%s)', t.name, array_to_string(t.reloptions, ', '));
        end if;
        for x in select g.grantee, g.privilege_type, g.is_grantable from aclexplode(t.relacl) g
                 where g.grantee <> t.relowner loop
            execute format('grant %s on derived_next.%I to %s%s', x.privilege_type, t.name,
                           case when x.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(x.grantee)) end,
                           case when x.is_grantable then ' with grant option' else '' end);
        end loop;
        execute format('alter table derived_next.%I owner to %I', t.name, t.owner);
    end loop;
end $$

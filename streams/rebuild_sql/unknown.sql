-- What schema derived has, or what leans on it, that a copy of its tables would not: nothing, while migrations put only
-- plain tables there. Such a thing must not be lost by a swap in silence.
select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
                      when 'p' then 'partitioned table' when 'f' then 'foreign table' else 'unlogged table' end
       || ' ' || c.oid::regclass::text as what
from pg_class c where c.relnamespace = 'derived'::regnamespace
    and (c.relkind in ('v', 'm', 'S', 'p', 'f') or (c.relkind = 'r' and c.relpersistence <> 'p'))
union all
select 'function ' || p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'derived'::regnamespace
union all
select 'foreign key ' || f.conname || ' of ' || f.conrelid::regclass::text from pg_constraint f join pg_class c
    on c.oid in (f.conrelid, f.confrelid) and c.relnamespace = 'derived'::regnamespace where f.contype = 'f'
union all
select 'trigger ' || t.tgname || ' of ' || t.tgrelid::regclass::text from pg_trigger t join pg_class c
    on c.oid = t.tgrelid and c.relnamespace = 'derived'::regnamespace where not t.tgisinternal
union all
select 'grant on columns of ' || c.oid::regclass::text from pg_class c where c.relnamespace = 'derived'::regnamespace
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attacl is not null)
union all
select distinct 'view ' || r.ev_class::regclass::text || ' on ' || c.oid::regclass::text
from pg_depend d join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    join pg_class c on d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid
where c.relnamespace = 'derived'::regnamespace and r.ev_class <> c.oid

-- What providers earned by the records of partition $1 from offset $2 up to, not with, $3, and what of it the sandbox
-- paid, which may be beyond a bigint. The first posting of a transaction is its payer's.
select e.account, e.asset, sum(e.amount_nano) as earned_nano,
       coalesce(sum(e.amount_nano) filter (where payer.account = 'platform:sandbox'), 0) as sandbox_nano
from derived.entries e
join derived.entries payer
    on payer.partition = e.partition and payer."offset" = e."offset" and payer.posting = 0
where e.partition = $1 and e."offset" >= $2 and e."offset" < $3 and e.account like 'provider:%'
group by 1, 2

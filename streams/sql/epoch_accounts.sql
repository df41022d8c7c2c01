-- All accounts in the order of the books' digest: by code point, whatever the database's locale.
select partition, account, asset, balance_nano, entries from derived.accounts
order by partition, account collate "C", asset collate "C"

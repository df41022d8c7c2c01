-- Nobody else changes an account of this partition while its offset is locked.
select account, asset, balance_nano from derived.accounts where account = any ($1::text[]) and partition = $2

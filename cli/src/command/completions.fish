
# Adds the names of workspaces to the completions above.
complete -c podling -n "__fish_seen_subcommand_from attach run export keep-awake explain policy resize restore archives sleep wake rm undelete" -f -a "(podling completions --names 2>/dev/null)"
complete -c podling -n "__fish_seen_subcommand_from cp" -a "(podling completions --names 2>/dev/null | string replace -r '\$' ':')"

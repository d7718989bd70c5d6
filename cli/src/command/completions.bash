
# Adds the names of workspaces to the completions above.
_podling_with_names() {
    _podling "$@"
    local cur="${COMP_WORDS[COMP_CWORD]}" command="" word index positional=0 names suffix=""
    local -a options=()
    [[ "$cur" == -* ]] && return
    for ((index = 1; index < COMP_CWORD; index++)); do
        word="${COMP_WORDS[index]}"
        case "$word" in
            --) return ;;
            --data | --url | --token | --ca)
                [[ "${COMP_WORDS[index + 1]}" == "=" ]] && ((index++))
                ((++index < COMP_CWORD)) || return
                options+=("$word" "${COMP_WORDS[index]}")
                ;;
            -*) ;;
            *) if [[ -z "$command" ]]; then command="$word"; else ((positional++)); fi ;;
        esac
    done
    case "$command" in
        attach | run | export | keep-awake | explain | resize | restore | archives)
            ((positional == 0)) || return
            ;;
        policy) ((positional == 1)) || return ;;
        sleep | wake | rm | undelete) ;;
        cp)
            ((positional < 2)) || return
            [[ "$COMP_LINE" == *: || "$cur" == : ]] && return
            suffix=":"
            ;;
        *) return ;;
    esac
    names="$("${COMP_WORDS[0]}" "${options[@]}" completions --names 2>/dev/null)"
    [[ -n "$names" ]] || return
    if [[ -n "$suffix" ]]; then
        COMPREPLY=($(compgen -W "$names" -S "$suffix" -- "$cur") $(compgen -f -- "$cur"))
        ((${#COMPREPLY[@]} == 1)) && compopt -o nospace 2>/dev/null
    else
        COMPREPLY=($(compgen -W "$names" -- "$cur"))
    fi
}

complete -F _podling_with_names -o bashdefault -o default podling

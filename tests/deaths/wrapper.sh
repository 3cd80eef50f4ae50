#!/bin/sh
# Stands in for llama-server and starts it as the profile's environment says: limited, with another
# model or address, or not at all.
engine=@ENGINE@
if [ -n "$DEATH_LIMIT_MIB" ]; then
    memory=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
    if [ -n "$memory" ]; then
        echo "${DEATH_LIMIT_MIB}M" > "/sys/fs/cgroup/memory$memory/memory.limit_in_bytes"
    else
        echo "${DEATH_LIMIT_MIB}M" > "/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/memory.max"
    fi
fi
if [ -n "$DEATH_VIRTUAL_MIB" ]; then ulimit -v "$((DEATH_VIRTUAL_MIB * 1024))"; fi
if [ -n "$DEATH_SAY" ]; then printf '%s\n' "$DEATH_SAY" >&2; fi
if [ -n "$DEATH_END" ]; then eval "$DEATH_END"; fi
if [ -n "$DEATH_MODEL" ]; then set -- "$@" --model "$DEATH_MODEL"; fi
if [ -n "$DEATH_HOST" ]; then set -- "$@" --host "$DEATH_HOST" --port "$DEATH_PORT"; fi
exec "${DEATH_ENGINE:-$engine}" "$@"

#!/bin/bash
# The HEALTHCHECK of all images: whether what this container was started for does its work. Without Python, whose start
# would cost more than the check.
command=$(tr '\0' ' ' < /proc/1/cmdline)
case $command in
  *'modelplane control-plane'*)
    # 200 once it can serve Envoys.
    port=${MODELPLANE_HTTP_LISTEN:-:18080}
    exec 3<>"/dev/tcp/127.0.0.1/${port##*:}" || exit 1
    printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    read -r line <&3
    [[ $line == *' 200 '* ]]
    ;;
  *'modelplane monitor --docker'*)
    # It is asked nothing: the monitor goes on without engine and etcd, and ends itself where it can't.
    ;;
  *'modelplane monitor'*)
    # The server's port, which opens when every model of its file has loaded.
    target=${MODELPLANE_TARGET:-127.0.0.1:8500}
    [[ $command =~ --port=([0-9]+) ]] && target=127.0.0.1:${BASH_REMATCH[1]}
    exec 3<>"/dev/tcp/${target%:*}/${target##*:}"
    ;;
esac

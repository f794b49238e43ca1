# SPDX-License-Identifier: Apache-2.0
# Sourced: need_packages, which brings Debian packages that are missing, and says so first.

# need_packages REASON PACKAGE...: true when all are installed afterwards. Without root it only says what to install.
need_packages() {
    reason=$1
    shift
    missing=
    for package; do
        case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
            *' installed') ;;
            *) missing="$missing $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "${0##*/}: for $reason this is missing (names of Debian's packages):$missing" >&2
        return 1
    fi
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        as_root=sudo
    else
        echo "${0##*/}: for $reason these packages are missing, and only root can bring them:$missing" >&2
        echo "${0##*/}: as root: apt-get install --no-install-recommends$missing" >&2
        return 1
    fi
    echo "${0##*/}: for $reason apt now installs:$missing" >&2
    # shellcheck disable=SC2086 # one word each
    $as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        install() { apt-get install --yes -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >/dev/null; }
        # A machine that never fetched the lists of packages knows none.
        [ -n "$(find /var/lib/apt/lists -name "*_Packages*" -print -quit)" ] || apt-get update -qq
        install "$@" || { apt-get update -qq && install "$@"; }' sh $missing >&2 </dev/null
}

# SPDX-License-Identifier: Apache-2.0
# Sourced after system-packages.sh, in the root of the tree: find_python, make_venv.

# python_packages: prints the Debian packages that the interpreter lacks to make virtual environments.
python_packages() {
    if ! command -v "${PYTHON:-python3}" >/dev/null; then
        echo python3 python3-venv
    # Debian keeps the part of venv that brings pip in a package of its own.
    elif ! "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3-venv
    fi
}

# find_python: sets $python to an interpreter that is new enough and can make virtual environments, or says what is missing.
find_python() {
    python=${PYTHON:-python3}
    if [ -n "$(python_packages)" ]; then
        echo "${0##*/}: without these packages there is no virtual environment: $(python_packages)" >&2
        return 1
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "${0##*/}: $("$python" --version) is too old: triaged needs 3.10 (set PYTHON to another interpreter)" >&2
        return 1
    }
}

install_locked() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --use-pep517 --require-hashes "$@"
}

# make_venv NAME: brings .venv up to requirements/NAME.txt. Every file that pip takes must have one of the hashes in the lock.
make_venv() {
    name=$1
    wanted="$("$python" -VV) $PWD $(cat requirements/build.txt "requirements/$name.txt" | sha256sum)"
    stamp=.venv/$name.installed
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return 0
    fi
    if ! [ -w . ] || { [ -d .venv ] && ! [ -w .venv ]; }; then
        echo "${0##*/}: $PWD is not this user's to write: .venv cannot be made there; run this in a clone of your own" >&2
        return 1
    fi
    # Of another Python, moved, or left half-way: made anew. Otherwise what is missing is added.
    if ! [ -x .venv/bin/python ] || [ "$(cat .venv/python.installed 2>/dev/null)" != "$("$python" -VV) $PWD" ]; then
        echo "${0##*/}: making the virtual environment .venv" >&2
        rm -rf .venv
        "$python" -m venv .venv
    fi
    echo "${0##*/}: installing requirements/$name.txt into .venv" >&2
    install_locked --requirement requirements/build.txt
    install_locked --no-build-isolation --requirement "requirements/$name.txt"
    # The tree itself, as it is: no copy that could be older than what is edited.
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$PWD/daemon" >"$site/triaged.pth"
    for program in triaged triagectl; do
        # For sh it is one command, for Python a string: an interpreter's path in the first line may be neither long nor have a space.
        {
            printf '#!/bin/sh\n'
            printf "'''exec' \"%s/.venv/bin/python\" \"\$0\" \"\$@\"\n' '''\n" "$PWD"
            tail -n +2 "packaging/bin/$program"
        } >".venv/bin/$program"
        chmod 755 ".venv/bin/$program"
    done
    echo "$("$python" -VV) $PWD" >.venv/python.installed
    echo "$wanted" >"$stamp"
}

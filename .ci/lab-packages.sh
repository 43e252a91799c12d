#!/usr/bin/env bash
# What the kernel lab needs of a Debian-like machine; run as root.  Idempotent.
set -euo pipefail
packages=(qemu-system-x86 gcc libc6-dev cpio xz-utils debian-archive-keyring)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
    apt-get update -q
    apt-get install -yq --no-install-recommends "${missing[@]}"
fi

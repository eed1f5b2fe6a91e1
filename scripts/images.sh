#!/bin/sh
# Build the images with docker, podman or buildah, whichever works here: `make images`.
#
#   REGISTRY   what stands before the images' names; localhost
#   TAG        their tag; the version in pyproject.toml
#   BASE       an image with Python and pip to build on, by digest if it is to be pushed; that of the Dockerfiles
#   PUSH       1: push them, too
#   PLATFORM   what nodes they are for; linux/amd64 if they are pushed, this machine's own otherwise
#   TARGET     a target of the Dockerfiles; the whole image
#
# What is in each image is written to build/sbom, too: /opt/finetune/sbom.cdx.json of the image.
set -eu
cd "$(dirname "$0")/.."

REGISTRY=${REGISTRY:-localhost}
TAG=${TAG:-$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)}

case ${PLATFORM:-} in
*,*)
    echo "error: PLATFORM=$PLATFORM names several; build one at a time, each with a TAG of its own" >&2
    exit 1
    ;;
esac
# Nodes have GPUs, and those are amd64 more often than not, whatever a laptop is.
if [ -z "${PLATFORM:-}" ] && [ "${PUSH:-0}" = 1 ]; then PLATFORM=linux/amd64; fi

case ${BASE:-@sha256:} in
*@sha256:*) ;;
*)
    if [ "${PUSH:-0}" = 1 ]; then
        echo "error: BASE=$BASE may be another image tomorrow; give it as NAME@sha256:DIGEST to push what is built" >&2
        exit 1
    fi
    ;;
esac

if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    tool=docker
elif command -v podman >/dev/null; then
    tool=podman
elif command -v buildah >/dev/null; then
    tool=buildah
else
    echo "error: no docker with a running engine, no podman and no buildah; install one of them" >&2
    exit 1
fi

build() {
    image=$REGISTRY/finetune-$1:$TAG
    echo "$tool builds $image for ${PLATFORM:-this machine}" >&2
    $tool build --file "$2" --tag "$image" ${PLATFORM:+--platform "$PLATFORM"} ${BASE:+--build-arg "BASE=$BASE"} ${TARGET:+--target "$TARGET"} .
    if [ -z "${TARGET:-}" ]; then
        mkdir -p build/sbom
        sbom "$image" >"build/sbom/finetune-$1.cdx.json"
    fi
    if [ "${PUSH:-0}" = 1 ]; then $tool push "$image"; fi
}

sbom() {
    if [ "$tool" = buildah ]; then
        container=$(buildah from ${PLATFORM:+--platform "$PLATFORM"} "$1")
        buildah run "$container" cat /opt/finetune/sbom.cdx.json
        buildah rm "$container" >/dev/null
    else
        $tool run --rm ${PLATFORM:+--platform "$PLATFORM"} --network none --entrypoint cat "$1" /opt/finetune/sbom.cdx.json
    fi
}

build operator operator/Dockerfile
build trainer trainer-image/Dockerfile

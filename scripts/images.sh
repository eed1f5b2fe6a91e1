#!/bin/sh
# Build the images with docker, podman or buildah, whichever works here: `make images`.
#
#   REGISTRY   what stands before the images' names; localhost
#   TAG        their tag; the version in pyproject.toml
#   BASE       an image with Python and pip to build on, by digest if it is to be pushed; that of the Dockerfiles
#   PUSH       1: push them, too
#   TARGET     a target of the Dockerfiles; the whole image
#
# What is in each image is written to build/sbom, too: /opt/finetune/sbom.cdx.json of the image.
set -eu
cd "$(dirname "$0")/.."

REGISTRY=${REGISTRY:-localhost}
TAG=${TAG:-$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)}

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
    echo "$tool builds $image" >&2
    $tool build --file "$2" --tag "$image" ${BASE:+--build-arg "BASE=$BASE"} ${TARGET:+--target "$TARGET"} .
    if [ -z "${TARGET:-}" ]; then
        mkdir -p build/sbom
        sbom "$image" >"build/sbom/finetune-$1.cdx.json"
    fi
    if [ "${PUSH:-0}" = 1 ]; then $tool push "$image"; fi
}

sbom() {
    if [ "$tool" = buildah ]; then
        container=$(buildah from "$1")
        buildah run "$container" cat /opt/finetune/sbom.cdx.json
        buildah rm "$container" >/dev/null
    else
        $tool run --rm --network none --entrypoint cat "$1" /opt/finetune/sbom.cdx.json
    fi
}

build operator operator/Dockerfile
build trainer trainer-image/Dockerfile

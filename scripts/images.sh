#!/bin/sh
# Build the images with docker, podman or buildah, whichever works here: `make images`.
#
#   REGISTRY   what stands before the images' names; localhost
#   TAG        their tag; the version in pyproject.toml
#   BASE       an image with Python and pip to build on, by digest if it is to be pushed; that of the Dockerfiles
#   PUSH       1: push them, too
#   PLATFORM   what nodes they are for; linux/amd64 if they are pushed, this machine's own otherwise
#   TARGET     a target of the Dockerfiles; the whole image
#   TORCH      cpu: the trainer with PyTorch's CPU build, its tag with -cpu behind, after `make lock-cpu`; cuda
#   TORCH_INDEX   a mirror of PyTorch's index, for TORCH=cpu
#
# What is in each image is written to build/sbom, too: /opt/finetune/sbom.cdx.json of the image.
set -eu
cd "$(dirname "$0")/.."

VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
REGISTRY=${REGISTRY:-localhost}
TAG=${TAG:-$VERSION}
REVISION=
if [ -e .git ]; then REVISION=$(git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || true); fi

pinned() { sed -n 's/^torch==\([^ ]*\).*/\1/p' "$1"; }

case ${TORCH:-cuda} in
cuda) ;;
cpu)
    wanted=$(pinned requirements/trainer.txt)+cpu
    lock=requirements/cpu/torch.txt
    if [ ! -e $lock ] || [ "$(pinned $lock)" != "$wanted" ]; then
        echo "error: $lock does not lock torch $wanted; make it where PyTorch's index can be reached: make lock-cpu" >&2
        exit 1
    fi
    ;;
*)
    echo "error: TORCH=$TORCH is none of PyTorch's builds here; it is cuda or cpu" >&2
    exit 1
    ;;
esac

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

# build NAME VARIANT DOCKERFILE ARGUMENT...
build() {
    image=$REGISTRY/finetune-$1:$TAG$2
    bill=build/sbom/finetune-$1$2.cdx.json
    file=$3
    shift 3
    echo "$tool builds $image for ${PLATFORM:-this machine}" >&2
    $tool build --file "$file" --tag "$image" ${PLATFORM:+--platform "$PLATFORM"} ${BASE:+--build-arg "BASE=$BASE"} ${TARGET:+--target "$TARGET"} \
        --label "org.opencontainers.image.version=$VERSION" ${REVISION:+--label "org.opencontainers.image.revision=$REVISION"} "$@" .
    if [ -z "${TARGET:-}" ]; then
        mkdir -p build/sbom
        sbom "$image" >"$bill"
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

build operator "" operator/Dockerfile
if [ "${TORCH:-cuda}" = cpu ]; then
    build trainer -cpu trainer-image/Dockerfile --build-arg TORCH=cpu ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"}
else
    build trainer "" trainer-image/Dockerfile
fi

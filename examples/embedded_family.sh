#!/bin/sh
# The mini and the nano of the embedded model: prune, map, train, quantize, export, verify.
#
#     sh examples/embedded_family.sh family              # about ten minutes on two idle cores
#     sh examples/embedded_family.sh family --compare    # and the same shapes trained from scratch
#
# What is there already is not made again, so that an interrupted run goes on where it was.
set -eu
out=${1:-family}
tokens=${TOKENS:-307200}
options="--tokens $tokens --precision ${PRECISION:-bf16} --patience 0 --eval-every 40"

made() { [ -e "$1" ]; }

for tier in mini nano; do
    here=$out/$tier
    # What pruning alone gives; and the same choice as a map that can be read and edited.
    made "$here/pruned" || gpt54-convert prune --tier $tier -o "$here/pruned"
    made "$here/map.toml" ||
        gpt54-convert distill map --tier $tier --layers influence --channels activations -o "$here/map.toml"
    made "$here/init" || gpt54-convert distill init --map "$here/map.toml" -o "$here/init"
    student=$here/init/safetensors
    made "$here/distilled" || gpt54-convert distill train --student "$student" $options -o "$here/distilled"
    if [ "${2:-}" = --compare ]; then
        made "$here/scratch" || gpt54-convert distill train --student "$student" $options \
            --from-scratch --kl 0 --hidden 0 --ce 1 -o "$here/scratch"
    fi
    made "$here/int4" ||
        gpt54-convert quantize "$here/distilled/safetensors" --scheme int4 --to gguf --to safetensors \
            --name gpt54-tiny-$tier -o "$here/int4"
    gpt54-convert verify "$here/int4/gguf" --against "$here/distilled/safetensors"
done

#!/bin/sh
# Trains nano-v4. Started again, a killed or stopped run goes on where it was; SIGTERM stops it with a checkpoint.
#   quant/runs/nano-v4/train.sh DATA RUNS TEACHER MODEL [STAGE]
# TEACHER is multilingual-e5-small as a Hugging Face BertModel. With STAGE, the script stops after that stage.
# MINUTES=90 makes a slice of each run of a stage, after which the script stops too. THREADS=2 limits the threads, and
# LAUNCH="torchrun --standalone --nproc-per-node 2" trains with two processes.
# START=DIR begins the stage `further` from weights alone (a model directory), on whatever machine made them; SEED=3 then
# draws other batches than those that made them.
set -euf
data=$1 runs=$2 teacher=$3 model=$4 last=${5:-export}
packed=$runs/packed.npz
slice="--minutes ${MINUTES:-0} --threads ${THREADS:-0} --save-every 1000000 --save-minutes 5 --log-every ${LOG_EVERY:-10} --seed ${SEED:-1}"
mix="text.*=0.5 text2.*=0.5 text3.*=1 text3.en=5 text.en=2 text2.en=2 text3.debian=1.5 qed=3 tydiqa=3 openstax=2
     medquad=1.5 ott-qa=2 tldr=0.5 tldr-parallel=0.3 omw-parallel=0.3 omw-definitions=0.3 oewn=0.7 ntrex-parallel=1.5
     gesetze=0.5 edgeai-course=0.5 edgeai-course-parallel=0.5 seal-tools=1 apibench=1 docstrings=0.7 ovos-wiki=1
     debian=1"
held_out="qed tydiqa openstax jaquad cmrc2018 text2.hi text2.ru text2.el text2.ko text2.ar seal-tools apibench tldr
          debian"

stage() {  # NAME COMMAND OPTIONS...: run a stage to its end, or stop the script after a slice
    name=$1 command=$2; shift 2
    echo "$(date +%T) $name" >&2
    # shellcheck disable=SC2086
    ${LAUNCH:-python} -m pplx_quant "$command" --data "$packed" --out "$runs/$name" "$@"
    steps=$(sed -n 's/^ "steps": \([0-9]*\),$/\1/p' "$runs/$name/options.json")
    grep -q "\"step\": $steps," "$runs/$name/checkpoint/training_state.json" || exit 0
    [ "$last" != "$name" ] || exit 0
}

# What the next command made is kept with the weights next to this script.
[ -f "$runs/tokenizer/tokenizer.json" ] || [ ! -d "$(dirname "$0")/start" ] || {
    mkdir -p "$runs/tokenizer" && cp "$(dirname "$0")/start/tokenizer.json" "$(dirname "$0")/start/tokenizer_config.json" \
        "$runs/tokenizer"
}
[ -f "$runs/tokenizer/tokenizer.json" ] || python -m pplx_quant tokenizer --data "$data" --out "$runs/tokenizer" \
    --vocab-size 49152 --lowercase --exponent 0.85 --chars 150000000
docstrings=$runs/pairs.docstrings.jsonl.gz
[ -f "$docstrings" ] || python -m pplx_quant docstring-pairs --out "$docstrings"
[ -f "$packed" ] || python -m pplx_quant pack --data "$data" --more "$docstrings" --tokenizer "$runs/tokenizer" \
    --out "$packed" --per-paragraph 1 --keep-text --max-text 256 --max-mb 500 \
    --cap oewn=30000 omw-definitions=12000 tldr=30000 ntrex-parallel=70000 omw-parallel=30000 tldr-parallel=15000 \
    fastapi-docs-parallel=14000 python-docs-parallel=14000 edgeai-course-parallel=10000 edgeai-course=10000 \
    docstrings=40000 debian=25000 ovos-wiki=30000 gesetze=10000 \
    text.en=40000 text.de=8000 text2.es=6000 text2.fr=4000 text2.pt=4000 text2.ro=4000 text3.debian=30000 \
    chunks.*=5000 chunks.jaquad=9999 chunks.openstax=9999 chunks.medquad=16000 chunks.python-docs=7000 \
    chunks.gesetze=9000 chunks.edgeai-course=6000
[ "$last" != pack ] || exit 0

# shellcheck disable=SC2086  # the lists are meant to be split
{
    lengths="--max-query 48 --max-positive 160 --dims 384 256 192 128 --call-tokens 2048"
    if [ -z "${START:-}" ]; then
        stage local distill --tokenizer "$runs/tokenizer" --teacher "$teacher" --inputs teacher --steps 90 --batch 96 \
            --block 8 $lengths --optimizer muon --embedding-rate 0 --matrix-rate 0.002 --vector-rate 0.002 --warmup 20 \
            --decay-share 0.2 --compile --validate-on $held_out --pool 300 $slice --boost $mix
        stage chained distill --init "$runs/local/checkpoint" --teacher "$teacher" --inputs student --steps 700 \
            --batch 96 --block 8 $lengths --optimizer muon --embedding-rate 0.001 --matrix-rate 0.001 \
            --vector-rate 0.001 --warmup 20 --decay-share 0.7 --vector-weight 1 --compile \
            --validate-on $held_out --pool 300 $slice --boost $mix
        START=$runs/chained/checkpoint
    fi
    stage further distill --init "$START" --teacher "$teacher" --inputs student --steps 3000 --batch 96 --block 8 $lengths \
        --optimizer muon --embedding-rate 0.0007 --matrix-rate 0.0007 --vector-rate 0.0007 --warmup 20 --decay-share 0.9 \
        --vector-weight 2 --compile --validate-on $held_out --pool 300 $slice --boost $mix
    stage pair pair --init "$runs/further/checkpoint" --steps 120 --batch 256 --block 64 $lengths \
        --embedding-rate 0.0005 --matrix-rate 0.0002 --vector-rate 0.0005 --warmup 10 --decay-share 0.7 \
        --temperature 0.05 --binary-weight 0.5 --compile --validate-on $held_out --pool 300 $slice --boost $mix
    stage more pair --init "$runs/pair/checkpoint" --steps 110 --batch 256 --block 64 $lengths \
        --embedding-rate 0.0005 --matrix-rate 0.0003 --vector-rate 0.0005 --warmup 5 --decay-share 0.7 \
        --temperature 0.05 --binary-weight 0.5 --compile --validate-on $held_out --pool 300 $slice \
        --boost $mix seal-tools=3 apibench=3 tldr=3 docstrings=2
    quantized="--weights int8 --table int8 --activations"
    stage context context --init "$runs/more/checkpoint" --steps 25 --batch 12 --plain 96 --block 32 \
        --max-document 4096 --max-query 48 --max-positive 160 --dims 384 256 192 128 --call-tokens 4096 \
        --embedding-rate 0.0003 --matrix-rate 0.0001 --vector-rate 0.0003 --warmup 5 --decay-share 0.7 \
        --temperature 0.05 --binary-weight 0.5 $quantized $slice --boost $mix
}
[ -d "$runs/averaged" ] || python -m pplx_quant merge --first "$runs/pair/checkpoint" \
    --second "$runs/more/checkpoint" --out "$runs/averaged" --weight 0.5
[ -d "$runs/merged" ] || python -m pplx_quant merge --first "$runs/averaged" \
    --second "$runs/context/checkpoint" --out "$runs/merged" --weight 0.5
python -m pplx_quant export --checkpoint "$runs/merged" --out "$model"

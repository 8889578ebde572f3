"""Prompts from a command line's arguments."""

from vllm import LLM, EngineArgs
from vllm.utils import FlexibleArgumentParser


def main(args):
    seed, temperature = args.pop("seed_of_params"), args.pop("temperature")
    llm = LLM(**args)
    params = llm.get_default_sampling_params()
    params.temperature, params.seed, params.max_tokens = temperature, seed, 8
    outputs = llm.generate(["The sky is", "Water is"], params)
    for output in outputs:
        assert output.outputs[0].token_ids
        assert output.finished
    print("basic", [output.prompt for output in outputs])


parser = FlexibleArgumentParser()
EngineArgs.add_cli_args(parser)
parser.set_defaults(max_model_len=128)
parser.add_argument("--seed-of-params", type=int, default=3)
parser.add_argument("--temperature", type=float, default=0.5)
main(
    {
        k: v
        for k, v in vars(parser.parse_args(["--enforce_eager", "--dtype", "float32"])).items()
        if v is not None
    }
)

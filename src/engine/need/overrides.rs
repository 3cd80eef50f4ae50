//! Tensors that llama-server is told to keep elsewhere than the rest of their layer: `--override-tensor`,
//! `--cpu-moe`, `--n-cpu-moe` and `--n-cpu-ffn`.
//!
//! Source: `parse_tensor_buffer_overrides` in `common/arg.cpp`, `common/common.h`, and
//! `llama_model_loader::create_tensor` of llama.cpp b11434: the first option that fits a tensor counts.

use std::collections::BTreeMap;

use fancy_regex::{Regex, RegexBuilder};
use thiserror::Error;

use super::arguments::Arguments;
use crate::spec::model::{ModelFacts, Place, Tensor};

/// The buffer of the CPU. All others are a GPU's: only buffers of devices can be named.
const CPU: &str = "CPU";
/// Source: `LLM_FFN_EXPS_REGEX`.
const EXPERTS: [&str; 8] = [
    ".ffn_up_exps",
    ".ffn_down_exps",
    ".ffn_gate_exps",
    ".ffn_gate_up_exps",
    ".ffn_up_chexps",
    ".ffn_down_chexps",
    ".ffn_gate_chexps",
    ".ffn_gate_up_chexps",
];
/// Source: `LLM_FFN_DENSE_REGEX`.
const DENSE: [&str; 3] = [".ffn_up.", ".ffn_down.", ".ffn_gate."];
/// Steps that one look at a name may take.
const MOST_STEPS: usize = 10_000;

/// Says why what `args` say of tensors is nothing that llama-server takes.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum OverrideFault {
    /// The number of layers is none.
    #[error("`{option}` in `args` takes a number of layers, 0 or more, found `{value}`")]
    Layers {
        /// The option as it was typed.
        option: String,
        /// What follows it.
        value: String,
    },
    /// A part of the list has no pattern or no buffer.
    #[error(
        "`{option}` in `args` takes PATTERN=BUFFER, several with commas between them, such as \
         `\\.ffn_up_exps=CPU`, found `{value}`"
    )]
    Pair {
        /// The option as it was typed.
        option: String,
        /// The part of the list.
        value: String,
    },
}

/// Where tensors are kept that are kept elsewhere than their layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Host,
    Gpu,
}

/// What `args` say of tensors, in the order of their options.
#[derive(Debug, Default)]
pub(super) struct Overrides(Vec<Rule>);

#[derive(Debug)]
enum Rule {
    /// Tensors that have one of these in their names, in layers below this.
    Parts(&'static [&'static str], u64),
    /// Tensors whose names fit; no pattern where it is one that is not understood here.
    Named(Box<Option<Regex>>, Side),
}

/// A pattern that is none here, or that takes too long.
struct NotUnderstood;

/// The sides of the tensors that some option fits, by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Overridden<'a>(BTreeMap<&'a str, Side>);

impl Overrides {
    /// Reads what the arguments say.
    ///
    /// # Errors
    /// [`OverrideFault`]: llama-server would refuse it too.
    pub(super) fn read(arguments: Arguments<'_>) -> Result<Self, OverrideFault> {
        let mut rules = Vec::new();
        for (option, value) in arguments.pairs() {
            match option {
                "--cpu-moe" | "-cmoe" => rules.push(Rule::Parts(&EXPERTS, u64::MAX)),
                "--n-cpu-moe" | "-ncmoe" => {
                    rules.push(Rule::Parts(&EXPERTS, layers(option, value)?));
                }
                "--n-cpu-ffn" | "-ncffn" => {
                    rules.push(Rule::Parts(&DENSE, layers(option, value)?));
                }
                "--override-tensor" | "-ot" => {
                    for part in value.split(',') {
                        rules.push(named(option, part)?);
                    }
                }
                _ => {}
            }
        }
        Ok(Self(rules))
    }

    /// Finds the tensors of a model that some option fits; `None` where that is not known, because a
    /// pattern is not understood.
    pub(super) fn among<'a>(&self, facts: &'a ModelFacts) -> Option<Overridden<'a>> {
        let mut sides = BTreeMap::new();
        // Nearly all models have no option that speaks of their tensors.
        if !self.0.is_empty() {
            for tensor in &facts.weights {
                if let Some(side) = self.side_of(tensor).ok()? {
                    sides.insert(tensor.name.as_str(), side);
                }
            }
        }
        Some(Overridden(sides))
    }

    fn side_of(&self, tensor: &Tensor) -> Result<Option<Side>, NotUnderstood> {
        for rule in &self.0 {
            match rule {
                Rule::Parts(parts, layers) => {
                    let Place::Layer(layer) = tensor.kind.place else { continue };
                    let fits = parts.iter().any(|part| tensor.name.contains(part));
                    if fits && u64::from(layer) < *layers {
                        return Ok(Some(Side::Host));
                    }
                }
                Rule::Named(pattern, side) => {
                    let pattern = pattern.as_ref().as_ref().ok_or(NotUnderstood)?;
                    if pattern.is_match(&tensor.name).map_err(|_| NotUnderstood)? {
                        return Ok(Some(*side));
                    }
                }
            }
        }
        Ok(None)
    }
}

impl Overridden<'_> {
    /// Returns where a tensor is kept, if some option says it.
    pub(super) fn side(&self, tensor: &Tensor) -> Option<Side> {
        self.0.get(tensor.name.as_str()).copied()
    }
}

/// Where each tensor of a model is kept.
#[derive(Clone, Debug)]
pub(super) struct Placed<'a> {
    pub(super) overridden: Overridden<'a>,
    /// This layer and those behind it are on a GPU.
    pub(super) first_on_gpu: u64,
    pub(super) has_gpu_output: bool,
}

impl Placed<'_> {
    pub(super) fn is_on_gpu(&self, tensor: &Tensor) -> bool {
        match (self.overridden.side(tensor), tensor.kind.place) {
            (Some(side), _) => side == Side::Gpu,
            (None, Place::Input) => false,
            (None, Place::Layer(layer)) => u64::from(layer) >= self.first_on_gpu,
            (None, Place::Output) => self.has_gpu_output,
        }
    }

    /// The copy of an embedding that is the output goes where its own name is sent, too.
    pub(super) fn is_output_on_gpu(&self, tensor: &Tensor) -> bool {
        self.overridden.side(tensor).map_or(self.has_gpu_output, |side| side == Side::Gpu)
    }
}

/// Source: `std::stoi`, which stops at the first letter.
fn layers(option: &str, value: &str) -> Result<u64, OverrideFault> {
    let digits = value.trim_start().trim_start_matches('+');
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    let number = digits.get(..end).and_then(|digits| digits.parse::<i32>().ok());
    let number = number.and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| OverrideFault::Layers { option: option.into(), value: value.into() })
}

fn named(option: &str, part: &str) -> Result<Rule, OverrideFault> {
    let pair = part.split_once('=').filter(|(_, buffer)| !buffer.is_empty());
    let Some((pattern, buffer)) = pair else {
        return Err(OverrideFault::Pair { option: option.into(), value: part.into() });
    };
    let side = if buffer == CPU { Side::Host } else { Side::Gpu };
    let pattern = RegexBuilder::new(pattern).backtrack_limit(MOST_STEPS).build().ok();
    Ok(Rule::Named(Box::new(pattern), side))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bytes, model::WeightKind};

    fn facts(names: &[&str]) -> ModelFacts {
        let tensor = |name: &&str| Tensor {
            name: (*name).to_owned(),
            kind: WeightKind {
                place: Place::of(name),
                ggml_type: 0,
                dimensions: 2,
                has_rows_of_eight: true,
            },
            bytes: Bytes(1),
            part: 0,
            span: (0, 1),
        };
        ModelFacts { weights: names.iter().map(tensor).collect(), ..ModelFacts::default() }
    }

    /// H for the host, G for a GPU, a dot where nothing is said; a question mark where nothing is known.
    fn sides(args: &[&str], names: &[&str]) -> String {
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        let facts = facts(names);
        let overrides = Overrides::read(Arguments(&args)).unwrap();
        let Some(overridden) = overrides.among(&facts) else { return "?".to_owned() };
        let letter = |tensor| match overridden.side(tensor) {
            Some(Side::Host) => 'H',
            Some(Side::Gpu) => 'G',
            None => '.',
        };
        facts.weights.iter().map(letter).collect()
    }

    fn fault(args: &[&str]) -> String {
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        Overrides::read(Arguments(&args)).unwrap_err().to_string()
    }

    const NAMES: [&str; 8] = [
        "token_embd.weight",
        "blk.0.ffn_up.weight",
        "blk.1.attn_q.weight",
        "blk.1.ffn_gate_inp.weight",
        "blk.1.ffn_up_exps.weight",
        "blk.1.ffn_up_shexp.weight",
        "blk.11.ffn_gate_up_exps.weight",
        "output.weight",
    ];

    #[test]
    fn experts_go_to_the_host_by_layer_and_shared_ones_stay() {
        assert_eq!(sides(&["--cpu-moe"], &NAMES), "....H.H.");
        assert_eq!(sides(&["-cmoe"], &NAMES), "....H.H.");
        assert_eq!(sides(&["--n-cpu-moe", "2"], &NAMES), "....H...");
        assert_eq!(sides(&["-ncmoe", "12"], &NAMES), "....H.H.");
        assert_eq!(sides(&["-ncmoe", "1"], &NAMES), "........");
        assert_eq!(sides(&["-ncmoe=999999999"], &NAMES), "....H.H.");
        assert_eq!(sides(&["--n-cpu-ffn", "1"], &NAMES), ".H......");
        assert_eq!(sides(&["--n-cpu-ffn", " +2 layers"], &NAMES), ".H......");
    }

    #[test]
    fn a_pattern_is_searched_in_the_name_and_the_first_that_fits_counts() {
        assert_eq!(sides(&["-ot", "exps=CPU"], &NAMES), "....H.H.");
        assert_eq!(sides(&["-ot", r"blk\.1\.=CPU"], &NAMES), "..HHHH..");
        assert_eq!(sides(&["-ot", r"blk\.1\.ffn=CUDA0,ffn=CPU"], &NAMES), ".H.GGGH.");
        assert_eq!(sides(&["-ot", "attn=CPU", "--cpu-moe", "-ot", "=CUDA0"], &NAMES), "GGHGHGHG");
        assert_eq!(sides(&["--override-tensor=^output=CPU"], &NAMES), ".......H");
        let but = r"^(?!blk\.\d+\.attn).*_exps=CPU";
        assert_eq!(sides(&["-ot", but], &NAMES), "....H.H.", "C++ can look ahead");
    }

    #[test]
    fn a_pattern_that_is_not_understood_leaves_the_places_unknown() {
        assert_eq!(sides(&["-ot", "(=CPU"], &NAMES), "?");
        assert_eq!(sides(&["-ot", "(x+x+)+(?!z)y=CPU"], &["x".repeat(60).as_str()]), "?");
    }

    #[test]
    fn what_llama_server_would_refuse_is_said_in_one_sentence() {
        let layers = "`-ncmoe` in `args` takes a number of layers, 0 or more, found";
        assert_eq!(fault(&["-ncmoe", "-1"]), format!("{layers} `-1`"));
        assert_eq!(fault(&["-ncmoe", "all"]), format!("{layers} `all`"));
        assert_eq!(fault(&["-ncmoe", "99999999999"]), format!("{layers} `99999999999`"));
        assert_eq!(fault(&["-ncmoe"]), format!("{layers} ``"));
        let pair = "`-ot` in `args` takes PATTERN=BUFFER, several with commas between them, such as \
                    `\\.ffn_up_exps=CPU`, found";
        assert_eq!(fault(&["-ot", "exps"]), format!("{pair} `exps`"));
        assert_eq!(fault(&["-ot", "a=CPU,"]), format!("{pair} ``"));
        assert_eq!(fault(&["-ot", "exps="]), format!("{pair} `exps=`"));
    }
}

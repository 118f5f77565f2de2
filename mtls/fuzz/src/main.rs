// SPDX-License-Identifier: Apache-2.0
//! Fuzzing on stable Rust: `firedoor-fuzz TARGET --seconds N --corpus FOLDER [--seed N]`, or `firedoor-fuzz --list`.
//!
//! Every file of the corpus is run as it is, then mutations of them until the time is over. A panic, a broken promise
//! of the target or a run of more than five seconds saves the input in the corpus as `found-…` and exits 1.
#![forbid(unsafe_code)]

mod mutate;
mod run;
mod targets;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use mutate::Random;
use targets::TARGETS;

struct Arguments {
    target: String,
    seconds: u64,
    corpus: PathBuf,
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words == ["--list"] {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        say(&names.join("\n"));
        return ExitCode::SUCCESS;
    }
    let Some(arguments) = parse(&words) else {
        eprintln!("usage: firedoor-fuzz TARGET --seconds N --corpus FOLDER [--seed N] | --list");
        return ExitCode::from(2);
    };
    let Some(target) = TARGETS.iter().find(|target| target.name == arguments.target) else {
        eprintln!("there is no target {}; --list shows them", arguments.target);
        return ExitCode::from(2);
    };
    let random = arguments.seed.map_or_else(Random::from_system, Random::new);
    match run::run(target, Duration::from_secs(arguments.seconds), &arguments.corpus, random) {
        Ok(report) => {
            say(&report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: &[String]) -> Option<Arguments> {
    let (target, options) = words.split_first()?;
    let mut arguments = Arguments { target: target.clone(), seconds: 10, corpus: PathBuf::new(), seed: None };
    for option in options.chunks(2) {
        match option {
            [name, value] if name == "--seconds" => arguments.seconds = value.parse().ok()?,
            [name, value] if name == "--corpus" => arguments.corpus = value.into(),
            [name, value] if name == "--seed" => arguments.seed = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    (!arguments.corpus.as_os_str().is_empty()).then_some(arguments)
}

fn say(text: &str) {
    // Nobody to tell when stdout is closed.
    _ = writeln!(std::io::stdout(), "{text}");
}

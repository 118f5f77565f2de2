// SPDX-License-Identifier: Apache-2.0
//! Messages and patterns of tests/vectors/dns, which are written down by hand beside what must be made of them.

use std::fs;
use std::path::Path;

use firedoor_dns::{Fault, Name, Names, Query, check_pattern, rcode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct Messages {
    cases: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    name: String,
    message: String,
    expect: String,
    onward: Option<String>,
    shown: Option<String>,
}

#[derive(Deserialize)]
struct Patterns {
    patterns: Vec<Pattern>,
    refused: Vec<String>,
}

#[derive(Deserialize)]
struct Pattern {
    pattern: String,
    matches: Vec<String>,
    differs: Vec<String>,
}

fn read<T: DeserializeOwned>(file: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/dns").join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn messages() {
    let all: Messages = read("messages.json");
    for case in &all.cases {
        let message = bytes(&case.message);
        let said = match Query::read(&message) {
            Ok(query) => {
                assert_eq!(Some(query.name().to_string()), case.shown, "{}", case.name);
                match query.unsupported() {
                    Some(code) => format!("rcode {}", code as u8),
                    None => {
                        let onward = case.onward.as_deref().map_or_else(|| message.clone(), bytes);
                        assert_eq!(query.onward(0xabcd)[2..], onward[2..], "{}", case.name);
                        "asked".to_owned()
                    }
                }
            }
            Err(Fault::Silent) => "silent".to_owned(),
            Err(Fault::Said(answer)) => {
                assert_eq!(answer[..2], message[..2], "{}", case.name);
                // With an OPT record at all, it is there for the upper bits of the code.
                let upper = if answer.len() > 12 { u16::from(answer[17]) << 4 } else { 0 };
                format!("rcode {}", upper | u16::from(rcode(&answer)))
            }
        };
        assert_eq!(said, case.expect, "{}", case.name);
    }
    assert!(all.cases.len() > 20);
}

fn name(text: &str) -> Name {
    let mut octets = vec![];
    for label in text.split('.').filter(|label| !label.is_empty()) {
        octets.push(u8::try_from(label.len()).unwrap());
        octets.extend_from_slice(label.as_bytes());
    }
    octets.push(0);
    Name::read(&octets).unwrap().0
}

#[test]
fn patterns() {
    let all: Patterns = read("patterns.json");
    for case in &all.patterns {
        let names = Names::parse(&[&case.pattern]).unwrap();
        for text in &case.matches {
            assert!(names.contain(&name(text)), "{} {text}", case.pattern);
        }
        for text in &case.differs {
            assert!(!names.contain(&name(text)), "{} {text}", case.pattern);
        }
    }
    for text in &all.refused {
        assert!(check_pattern(text).is_err(), "{text:?}");
    }
}

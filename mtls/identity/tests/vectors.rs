// SPDX-License-Identifier: Apache-2.0
//! The vectors that this verifier shares with the Python one.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use firedoor_identity::{
    Direction, IdPattern, Intermediates, Listed, PathCache, Revocation, Revocations, Roots, RootsByDomain, SpiffeId,
    TrustDomain, VerifyError, What, verify_chain,
};
use serde_json::Value;

fn load(path: &str) -> Value {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors");
    serde_json::from_slice(&fs::read(folder.join(path)).unwrap()).unwrap()
}

fn cases(file: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    file["cases"].as_array().unwrap().iter().map(|case| (text(&case["name"]), text(&case["expect"]), case))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn ders(list: &Value) -> Vec<Vec<u8>> {
    list.as_array().unwrap().iter().map(|der| base64(text(der))).collect()
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for digit in text.bytes().filter_map(|byte| ALPHABET.iter().position(|known| *known == byte)) {
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}

fn revocations(case: &Value) -> Revocations {
    let list = case.get("revocations").and_then(Value::as_array).cloned().unwrap_or_default();
    Revocations::new(list.iter().map(|fields| {
        let given = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
        let what = match (given("serial"), given("authority_id"), given("pattern")) {
            (Some(serial), None, None) => What::Serial(serial),
            (None, Some(id), None) => What::Authority(id),
            (None, None, Some(pattern)) => What::Ids {
                pattern: IdPattern::parse(&pattern).unwrap(),
                issued_before: fields["issued_before"].as_i64().unwrap(),
            },
            _ => panic!("{fields}"),
        };
        Revocation { what, reason: String::new() }
    }))
}

/// What a case says of CAs, and of which patterns are members of which segment.
fn intermediates(case: &Value) -> Option<Intermediates> {
    let strings = |list: &Value| list.as_array().unwrap().iter().map(|each| text(each).to_owned()).collect::<Vec<_>>();
    let mut listed = Listed::new();
    for (hash, segments) in case.get("intermediates")?.as_object().unwrap() {
        let bytes = (0..32).map(|at| u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<_>>();
        listed.insert(bytes.try_into().unwrap(), strings(segments).into_iter().collect());
    }
    let mut members = Vec::new();
    for (name, patterns) in case["members"].as_object().unwrap() {
        let patterns = strings(patterns).iter().map(|each| IdPattern::parse(each).unwrap()).collect::<Vec<_>>();
        members.push((name.clone(), patterns));
    }
    let segment_of = move |id: &SpiffeId| {
        members.iter().find(|(_, each)| each.iter().any(|one| one.matches(id))).map(|(name, _)| name.clone())
    };
    Some(Intermediates::new(TrustDomain::parse("td").unwrap(), listed, Arc::new(segment_of)))
}

fn roots(case: &Value) -> Result<RootsByDomain, VerifyError> {
    let mut domains = BTreeMap::new();
    for (name, roots) in case["bundles"].as_object().unwrap() {
        domains.insert(TrustDomain::parse(name)?, Arc::new(Roots::parse(&ders(roots))?));
    }
    Ok(RootsByDomain::new(domains))
}

/// Verify in both directions.
fn verify(case: &Value, cache: Option<&PathCache>, at: i64) -> Result<(String, i64), VerifyError> {
    let (roots, mut revocations) = (roots(case)?, revocations(case));
    if let Some(intermediates) = intermediates(case) {
        revocations = revocations.with_intermediates(intermediates);
    }
    let chain: Vec<_> = ders(&case["chain"]).into_iter().map(Into::into).collect();
    let verify = |direction| verify_chain(&chain, &roots, &revocations, direction, cache, at);
    verify(Direction::PeerIsServer)?;
    let verified = verify(Direction::PeerIsClient)?;
    Ok((verified.id().to_string(), verified.deadline()))
}

#[test]
fn svids() {
    let file = load("svid/cases.json");
    for (name, expect, case) in cases(&file) {
        match verify(case, None, case["at"].as_i64().unwrap()) {
            Ok((id, deadline)) => {
                assert_eq!(expect, "ok", "{name}");
                assert_eq!((id.as_str(), Some(deadline)), (text(&case["id"]), case["not_after"].as_i64()), "{name}");
            }
            Err(error) => assert_eq!(error.code.as_str(), expect, "{name}: {error}"),
        }
    }
}

/// One cache for all cases, warmed at the case's own time and asked at others: it never answers otherwise.
#[test]
fn the_cache_changes_no_answer() {
    let file = load("svid/cases.json");
    let cache = PathCache::default();
    for _ in 0..2 {
        for (name, _, case) in cases(&file) {
            let at = case["at"].as_i64().unwrap();
            for step in [0, -20, 3599, 3600, 3601, 86_400, 0] {
                let plain = verify(case, None, at + step);
                assert_eq!(verify(case, Some(&cache), at + step), plain, "{name} at {step:+}");
            }
        }
    }
}

#[test]
fn spiffe_ids() {
    for file in ["rules", "alphabets", "lengths"] {
        let file = load(&format!("spiffe_ids/{file}.json"));
        for (name, expect, case) in cases(&file) {
            let code = SpiffeId::parse(text(&case["id"])).map_or_else(|error| error.code.as_str(), |_| "ok");
            assert_eq!(code, expect, "{name}");
        }
    }
}

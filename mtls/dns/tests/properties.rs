// SPDX-License-Identifier: Apache-2.0
//! What holds for every input.

use firedoor_dns::{Fault, MAX_QUERY, Name, Names, Query, Rcode, rcode};
use proptest::prelude::*;

/// A name of labels with any octets, the dot among them.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6).prop_map(|labels| {
        let mut octets = vec![];
        for label in labels {
            octets.push(u8::try_from(label.len()).unwrap());
            octets.extend(label);
        }
        octets.push(0);
        octets
    })
}

/// A query, whole or with something changed.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let opt = prop_oneof![Just(vec![]), Just(vec![0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 0])];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (any::<[u8; 2]>(), name(), any::<u16>(), opt, changes).prop_map(|(id, name, kind, opt, changes)| {
        let header = [id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!opt.is_empty())];
        let mut made = [&header[..], &name, &kind.to_be_bytes(), &[0, 1], &opt].concat();
        for (at, octet) in changes {
            let at = at.index(made.len());
            made[at] = octet;
        }
        made
    })
}

proptest! {
    /// What is read is what is sent on, and its answer is known by it.
    #[test]
    fn a_query_is_sent_on_as_it_was_read(message in message(), id in any::<u16>()) {
        match Query::read(&message) {
            Ok(query) => {
                let onward = query.onward(id);
                let mut again = Query::read(&onward).unwrap().onward(id);
                prop_assert_eq!(&again, &onward);
                prop_assert!(onward.len() <= message.len() && !query.is_answered_by(&onward, id));
                again[2] |= 0x80;
                prop_assert!(query.is_answered_by(&again, id) && !query.is_answered_by(&again, !id));
                query.give_back_id(&mut again);
                prop_assert_eq!(&again[..2], &message[..2]);
                prop_assert_eq!(rcode(&query.answer(Rcode::Refused)), 5);
            }
            Err(Fault::Said(answer)) => prop_assert_eq!(Query::read(&answer), Err(Fault::Silent)),
            Err(Fault::Silent) => prop_assert!(message[2] & 0x80 != 0),
        }
    }

    /// Nothing at all makes the parser panic, and what is too long is not read.
    #[test]
    fn anything_is_read_or_refused(message in prop::collection::vec(any::<u8>(), 0..2 * MAX_QUERY)) {
        if let Ok(query) = Query::read(&message) {
            prop_assert!(message.len() <= MAX_QUERY && query.udp_limit() <= MAX_QUERY);
        }
    }

    /// A name as it is shown is short, printable, and of no other name.
    #[test]
    fn names_are_shown_apart(one in name(), two in name()) {
        let read = |octets: &[u8]| Name::read(octets).unwrap().0;
        let (one, two) = (read(&one), read(&two));
        let shown = one.to_string();
        prop_assert!(shown.len() <= 4 * 255 && shown.bytes().all(|octet| (b'!'..=b'~').contains(&octet)));
        prop_assert_eq!(shown == two.to_string(), one.octets() == two.octets());
    }

    /// A pattern without stars is one name; with `**` before it, all below.
    #[test]
    fn patterns_mean_what_they_say(labels in prop::collection::vec("[a-z0-9_-]{1,8}", 1..5), below in "[a-z]{1,5}") {
        let octets = |labels: &[String]| {
            let mut all: Vec<u8> = labels.iter().flat_map(|label| {
                [&[u8::try_from(label.len()).unwrap()], label.to_ascii_uppercase().as_bytes()].concat()
            }).collect();
            all.push(0);
            all
        };
        let own = Name::read(&octets(&labels)).unwrap().0;
        let child = Name::read(&octets(&[&[below][..], &labels].concat())).unwrap().0;
        let text = labels.join(".");
        let contain = |pattern: String, name| Names::parse(&[pattern]).unwrap().contain(name);
        prop_assert!(contain(text.clone(), &own) && !contain(text.clone(), &child));
        for star in ["*", "**"] {
            let (is_child, is_own) = (contain(format!("{star}.{text}"), &child), contain(format!("{star}.{text}"), &own));
            prop_assert!(is_child && !is_own);
        }
    }
}

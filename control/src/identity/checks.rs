//! Checks the content of the identity's files before it is used or shared.
//!
//! An unusable file must replace no usable one: neither in the memory of a replica nor on disk. The
//! checks are therefore pure functions of the content. They do not depend on the time, so that an
//! expired certificate is not mistaken for damage.

use std::collections::BTreeMap;

use super::{
    CA_KEY, ROOT_TOKEN, RootToken, SigningKeys, TOKEN_KEYS,
    certificate::{self, is_pair},
    secret_file,
};

/// Files of the identity, as paths in the data directory.
pub(crate) const FILES: [&str; 6] =
    [ROOT_TOKEN, TOKEN_KEYS, CA_CERTIFICATE, CA_KEY, "control/tls.pem", "control/tls.key"];
const CA_CERTIFICATE: &str = "control/ca.pem";

/// Content by entry of [`FILES`]. Missing files have no entry.
pub(crate) type IdentityFiles = BTreeMap<&'static str, Vec<u8>>;

/// The unusable files among `files`, each with a phrase that says what its content is or is not.
pub(crate) fn unusable(files: &IdentityFiles) -> BTreeMap<&'static str, &'static str> {
    let mut found = BTreeMap::new();
    let mut check = |name: &'static str, expected, is_usable: &dyn Fn(&[u8]) -> bool| {
        let Some(content) = files.get(name) else { return };
        if content.trim_ascii().is_empty() {
            found.insert(name, "is empty");
        } else if content.len() > secret_file::MAX_BYTES || !is_usable(content) {
            found.insert(name, expected);
        }
    };
    check(ROOT_TOKEN, "is not a root token", &|content| RootToken::parse(content).is_some());
    check(TOKEN_KEYS, "contains no token keys", &|content| SigningKeys::parse(content).is_some());
    let key = "is not a private key in PEM form";
    check(CA_KEY, key, &|content| certificate::authority_key(content).is_some());
    let certificate = "is not a certificate in PEM form";
    check(CA_CERTIFICATE, certificate, &certificate::is_certificate);
    check("control/tls.pem", certificate, &certificate::is_certificate);
    check("control/tls.key", key, &certificate::is_key);

    for (certificate, of_key, key, of_certificate) in [
        (CA_CERTIFICATE, "is not the certificate of ca.key", CA_KEY, "is not the key of ca.pem"),
        (
            "control/tls.pem",
            "is not the certificate of tls.key",
            "control/tls.key",
            "is not the key of tls.pem",
        ),
    ] {
        let usable = |name: &str| files.get(name).filter(|_| !found.contains_key(name));
        if let (Some(pem), Some(key_pem)) = (usable(certificate), usable(key))
            && !is_pair(pem, key_pem)
        {
            found.extend([(certificate, of_key), (key, of_certificate)]);
        }
    }
    let usable = |name: &str| files.get(name).filter(|_| !found.contains_key(name));
    if let (Some(pem), Some(key)) = (usable(CA_CERTIFICATE), usable(CA_KEY))
        && !certificate::is_authority(pem, key)
    {
        found.insert(CA_CERTIFICATE, "does not verify certificates that ca.key signs");
    }
    found
}

/// Returns `files` with the unusable and missing ones replaced by those of `memory`, which must all
/// be usable. A missing file is not filled in if it would not fit to the others.
pub(crate) fn repaired(files: &IdentityFiles, memory: &IdentityFiles) -> IdentityFiles {
    let mut repaired = files.clone();
    // A replaced key can reveal that the certificate beside it belongs to another key.
    loop {
        let damaged = unusable(&repaired);
        let replaced: Vec<_> = memory
            .iter()
            .filter(|(name, good)| damaged.contains_key(*name) && repaired.get(*name) != Some(*good))
            .map(|(name, good)| (*name, good.clone()))
            .collect();
        if replaced.is_empty() {
            break;
        }
        repaired.extend(replaced);
    }
    for (name, good) in memory {
        if !repaired.contains_key(name) {
            let damaged = unusable(&repaired).len();
            repaired.insert(*name, good.clone());
            if unusable(&repaired).len() > damaged {
                repaired.remove(name);
            }
        }
    }
    repaired
}

/// Returns the files of a new identity.
#[cfg(test)]
pub(crate) fn sample() -> IdentityFiles {
    let data = tempfile::tempdir().expect("directory");
    super::ControlIdentity::open(data.path(), super::MissingSecrets::Create).expect("identity");
    FILES.map(|name| (name, std::fs::read(data.path().join(name)).expect("a file"))).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::LONG_LIVED_SECRETS;

    #[test]
    fn damage_of_each_file_is_found_and_repaired() {
        let good = sample();
        assert_eq!(unusable(&good), BTreeMap::new());
        let long = "x".repeat(secret_file::MAX_BYTES + 1);
        for name in FILES {
            for garbage in ["", " \n", "garbage", "{}", "[]", "podling_", &long] {
                let mut damaged = good.clone();
                damaged.insert(name, garbage.as_bytes().to_vec());
                assert_eq!(unusable(&damaged).into_keys().collect::<Vec<_>>(), [name], "{garbage:.9}");
                assert_eq!(repaired(&damaged, &good), good);
            }
            let mut missing = good.clone();
            missing.remove(name);
            assert_eq!(unusable(&missing), BTreeMap::new(), "a missing file is not an unusable one");
            assert_eq!(repaired(&missing, &good), good);
        }
        let all_damaged = FILES.map(|name| (name, b"garbage".to_vec())).into();
        assert_eq!(unusable(&all_damaged).len(), FILES.len());
        assert_eq!(repaired(&all_damaged, &good), good);
    }

    #[test]
    fn key_of_another_certificate_is_found_and_repaired() {
        let (good, other) = (sample(), sample());
        for pair in [["control/ca.pem", "control/ca.key"], ["control/tls.pem", "control/tls.key"]] {
            for name in pair {
                let mut mixed = good.clone();
                mixed.insert(name, other[name].clone());
                assert_eq!(unusable(&mixed).into_keys().collect::<Vec<_>>(), {
                    let mut both = pair;
                    both.sort_unstable();
                    both
                });
                assert_eq!(repaired(&mixed, &good), good);
                assert_eq!(repaired(&mixed, &IdentityFiles::new()), mixed, "there is no memory");
            }
        }
        assert_eq!(unusable(&other), BTreeMap::new());
    }

    #[test]
    fn usable_files_take_precedence_over_memory() {
        let (stored, memory) = (sample(), sample());
        assert_eq!(repaired(&stored, &memory), stored);
        let mut restored = stored.clone();
        restored.retain(|name, _| LONG_LIVED_SECRETS.contains(name));
        let repaired = repaired(&restored, &memory);
        assert_eq!(repaired[CA_KEY], stored[CA_KEY], "a restored key stays");
        assert!(!repaired.contains_key(CA_CERTIFICATE), "the certificate of another key is not added");
    }
}

//! The syntax of names, labels and images in Kubernetes. Does no I/O.

/// Longest DNS label, label value and local part of a label key, in characters.
const MAX_LABEL: usize = 63;
/// Longest DNS subdomain, in characters.
const MAX_SUBDOMAIN: usize = 253;
/// Longest tag of an image, in characters.
const MAX_TAG: usize = 128;
/// Shortest digest of an image, in hexadecimal digits.
const MIN_DIGEST: usize = 32;

/// Returns whether the text is a DNS label (RFC 1123): at most 63 of a-z, 0-9 and "-".
pub(crate) fn is_dns_label(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= MAX_LABEL && is_word(text, is_inner)
}

/// Returns whether the text is a DNS subdomain: DNS labels of any length with dots between them.
pub(super) fn is_subdomain(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(|part| is_word(part, is_inner))
}

/// Returns whether the text can be the key of a label or of an annotation.
pub(super) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

/// Returns whether the text can be the value of a label.
pub(super) fn is_label_value(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.is_empty() || (text.len() <= MAX_LABEL && is_word(text, is_inner))
}

/// Returns whether the text can be a key of a Secret.
pub(super) fn is_secret_key(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= MAX_SUBDOMAIN && text.chars().all(is_inner) && !is_dots(text)
}

/// Returns whether the text refers to an image: a repository with or without a registry, a tag and a
/// digest. Accepts a few references that registries refuse.
pub(super) fn is_image(text: &str) -> bool {
    let (tagged, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let is_registry =
        |part: &str| part.contains(['.', ':']) || part == "localhost" || part.contains(char::is_uppercase);
    let (registry, rest) = match tagged.split_once('/') {
        Some((first, rest)) if is_registry(first) => (Some(first), rest),
        _ => (None, tagged),
    };
    let (repository, tag) = rest.split_once(':').map_or((rest, None), |(name, tag)| (name, Some(tag)));
    let is_of_registry = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']');
    let is_of_repository = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let is_of_tag = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_digest = |digest: &str| {
        let hex = digest.split_once(':').map_or("", |(_, hex)| hex);
        hex.len() >= MIN_DIGEST && hex.chars().all(|c| c.is_ascii_hexdigit())
    };
    registry.is_none_or(|registry| !registry.is_empty() && registry.chars().all(is_of_registry))
        && repository.split('/').all(|part| is_word(part, is_of_repository))
        && tag.is_none_or(|tag| !tag.is_empty() && tag.len() <= MAX_TAG && tag.chars().all(is_of_tag))
        && digest.is_none_or(is_digest)
}

/// Returns whether all characters are permitted, and the first and last are letters or digits.
fn is_word(text: &str, is_inner: impl Fn(char) -> bool) -> bool {
    let is_edge = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(is_edge) && text.ends_with(is_edge) && text.chars().all(is_inner)
}

/// Returns whether the text is "." or begins with "..".
fn is_dots(text: &str) -> bool {
    text == "." || text.starts_with("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<'t>(is_valid: fn(&str) -> bool, texts: &[&'t str]) -> Vec<&'t str> {
        texts.iter().filter(|text| !is_valid(text)).copied().collect()
    }

    #[test]
    fn invalid_names_and_labels_are_refused() {
        let long = "a".repeat(64);
        assert_eq!(refused(is_dns_label, &["a", "1-a", &long[1..]]), [""; 0]);
        let bad = ["", "A", "a.b", "-a", "a-", &long];
        assert_eq!(refused(is_dns_label, &bad), bad);
        assert_eq!(refused(is_subdomain, &["a", "a.b-c.1"]), [""; 0]);
        assert_eq!(refused(is_subdomain, &["A_B", "No Such", "a..b", ".a"]).len(), 4);
        assert_eq!(refused(is_label_key, &["a_b", "example.org/A.b"]), [""; 0]);
        assert_eq!(refused(is_label_key, &["", "a b", "/a", "a/", "a/b/c", "A/b"]).len(), 6);
        assert_eq!(refused(is_label_value, &["", "A_b.c-1"]), [""; 0]);
        assert_eq!(refused(is_label_value, &["a b", "-a", &long]).len(), 3);
        assert_eq!(refused(is_secret_key, &["a", ".a", "A_b-c.d", "tls.key"]), [""; 0]);
        assert_eq!(refused(is_secret_key, &["", "a/b c", ".", "..", "..a"]).len(), 5);
    }

    #[test]
    fn invalid_images_are_refused() {
        let digest = format!("registry.example/a@sha256:{}", "0a".repeat(32));
        let images = [
            "python",
            "python:3.14-slim",
            "podling/agent:0.1.0",
            "localhost:5000/a/b__c:v1",
            "docker.io/library/debian:bookworm-slim",
            "[2001:db8::1]:5000/a",
            "Registry/a",
            &digest,
        ];
        assert_eq!(refused(is_image, &images), [""; 0]);
        let bad = [
            "",
            "docker.io/UPPER:::x",
            "Python",
            "a b",
            " python",
            "python:",
            "python:a:b",
            "a//b",
            "/a",
            "a/",
            "a@sha256:1",
            "https://registry.example/a",
        ];
        assert_eq!(refused(is_image, &bad), bad);
    }
}

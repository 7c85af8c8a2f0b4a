//! "did you mean": one measure for names, keys and values.

/// Jaro-Winkler likeness from which a word may have been meant for another.
const ALIKE: f64 = 0.8;

/// The candidate that `word` was probably meant to be, if any is like it.
#[must_use]
pub fn nearest<'a, T: AsRef<str> + ?Sized>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a T>,
) -> Option<&'a T> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate.as_ref()), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_like_is_meant_and_what_is_like_nothing_is_not() {
        let names = ["api", "my-project", "my-protocol"];
        assert_eq!(nearest("my-projcet", names), Some("my-project"));
        assert_eq!(nearest("ipa", names), None);
        assert_eq!(nearest("zzz", names), None);
        assert_eq!(nearest("api", [] as [&str; 0]), None);
    }
}

//! "Did you mean …?"

const MOST_EDITS: usize = 3;

/// The known word nearest to `word`, if one is near enough to be meant.
pub(crate) fn closest<'w>(word: &str, known: &[&'w str]) -> Option<&'w str> {
    const LONGEST: usize = 40;
    if word.chars().count() > LONGEST {
        return None;
    }
    let (lower, length) = (word.to_lowercase(), word.chars().count());
    // So many edits at least make up for a difference in length.
    let near = known.iter().filter(|candidate| candidate.chars().count().abs_diff(length) <= MOST_EDITS);
    let candidates = near.map(|candidate| (distance(&lower, &candidate.to_lowercase()), *candidate));
    let (distance, candidate) = candidates.min_by_key(|(distance, _)| *distance)?;
    let allowed = (candidate.chars().count().max(3) / 3).min(MOST_EDITS);
    (distance <= allowed).then_some(candidate)
}

/// Edits (insert, delete, replace, swap neighbours) that turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_word_is_suggested() {
        let known = ["virtualIPs", "authPass", "interface", "unicastPeers"];
        assert_eq!(closest("virtualIps", &known), Some("virtualIPs"));
        assert_eq!(closest("auhtPass", &known), Some("authPass"));
        assert_eq!(closest("unicastPeer", &known), Some("unicastPeers"));
        assert_eq!(closest("nodeSelector", &known), None);
        assert_eq!(closest("", &known), None);
        assert_eq!(closest(&"x".repeat(1000), &known), None);
    }
}

//! Text of unknown origin, made safe to print on a terminal and in a log.

use std::borrow::Cow;

/// Returns `text` with every character escaped that could forge lines, drive a terminal or change the order in which a
/// text is read: `\n`, `\t`, `\r`, otherwise `\u{202e}`.
///
/// Names in configurations, certificates, advertisements and answers of API servers are written by others. Escaped are
/// control characters (C0, DEL, C1), line and paragraph separators, the bidirectional controls of UAX #9 §2 and other
/// characters without a glyph. A backslash stays as it is, so that escaping twice changes nothing.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unprintable(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Returns whether a character has no place on a line of printed text; see [`escaped`].
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    // General category Cc is `is_control`; the rest are Cf, Zl and Zp characters that no name needs.
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// The text of a document with the same bytes at the same places, except that unprintable characters are question
/// marks; line breaks and tabs stay.
pub(crate) fn blanked(text: &str) -> Cow<'_, str> {
    let breaks_line = |rest: &str| rest.starts_with(['\n', '\t']) || rest.starts_with("\r\n");
    let bad = |(at, c): (usize, char)| is_unprintable(c) && !breaks_line(&text[at..]);
    if !text.char_indices().any(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if bad((at, c)) {
            out.extend(std::iter::repeat_n('?', c.len_utf8()));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bidi_and_line_break_characters_are_escaped() {
        assert_eq!(escaped("a\nb\tc\r\u{1b}[31m\u{7f}\u{9b}"), r"a\nb\tc\r\u{1b}[31m\u{7f}\u{9b}");
        assert_eq!(
            escaped("a\u{202e}b\u{2066}\u{2028}\u{feff}\u{e0041}"),
            r"a\u{202e}b\u{2066}\u{2028}\u{feff}\u{e0041}"
        );
    }

    #[test]
    fn printable_text_is_unchanged_and_escaping_is_idempotent() {
        for text in ["", "kube-apiserver", "größe ≥ 3 µs", r"C:\path", "控制平面", "é"] {
            assert!(matches!(escaped(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        let once = escaped("\u{202e}\n").into_owned();
        assert_eq!(escaped(&once), once);
    }

    #[test]
    fn no_unprintable_character_survives() {
        for c in ('\0'..=char::MAX).filter(|&c| is_unprintable(c)) {
            let text = format!("x{c}y");
            assert!(!escaped(&text).contains(is_unprintable), "{c:?}");
            let same = blanked(&text);
            assert_eq!(same.len(), text.len());
            assert!(!same.contains(|c| is_unprintable(c) && !matches!(c, '\n' | '\t')), "{c:?}");
        }
    }

    #[test]
    fn a_blanked_document_keeps_its_lines() {
        assert_eq!(blanked("a: b\r\n\tc: \u{202e}d\re\u{85}\n"), "a: b\r\n\tc: ???d?e??\n");
        assert!(matches!(blanked("a: é\n"), Cow::Borrowed(_)));
    }
}

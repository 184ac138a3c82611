//! The result on a screen.
//! In: a record. Out: text with tables.

use comfy_table::{Table, presets};

use super::cells::{self, Cells};
use super::digest;
use super::record::Record;

/// Everything, the targets first.
pub(crate) fn whole(record: &Record) -> String {
    let results = digest::results(record);
    let targets = digest::targets(&results);
    let mut parts = Vec::new();
    let facts = cells::circumstances(record).into_iter();
    parts
        .push(facts.map(|(what, value)| format!("{what}: {value}")).collect::<Vec<_>>().join("\n"));
    for result in &results {
        let head = format!("{}: {}", result.case, cells::settings(result));
        parts.push(format!("{head}\n{}", grid(&cells::result(result))));
    }
    if !targets.is_empty() {
        parts.push(grid(&cells::targets(&targets)));
    }
    let mut notes: Vec<_> = record.notes.iter().map(|note| format!("note: {note}")).collect();
    notes.extend(record.cut_short.iter().map(|why| format!("cut short: {why}")));
    if !notes.is_empty() {
        parts.push(notes.join("\n"));
    }
    parts.join("\n\n")
}

fn grid(cells: &Cells) -> String {
    let mut table = Table::new();
    let header: Vec<_> = cells.header.iter().map(|word| word.to_ascii_uppercase()).collect();
    table.load_style(presets::NOTHING).set_header(header).add_rows(&cells.rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::digest::tests::drained;

    #[test]
    fn it_says_where_what_and_whether_it_was_cut_short() {
        let mut record = drained(&[[900.0, 1000.0, 300.0]]);
        record.cut_short = Some("interrupted".to_owned());
        let text = whole(&record);
        for words in [
            "broker: RabbitMQ 4.3.6",
            "command: forebay bench",
            "drain quorum: 20,000 jobs",
            "CONTESTANT",
            "drain ÷ lapin, batched acks",
            "note: a note",
            "cut short: interrupted",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}

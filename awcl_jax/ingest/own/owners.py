"""The patient of each scan: a scan with two would be in two splits."""

from awcl_jax.ingest.own.items import Fault, Listing, Row


class Owners:
    """Notes whose each scan is, row by row."""

    def __init__(self) -> None:
        self._first: dict[str, Row] = {}

    def of_another(self, row: Row) -> Row | None:
        """Return the first row of the scan of a row if it is of another patient; None if it is not, or has no scan."""
        first = self._first.setdefault(row.scan, row) if row.scan else row
        return first if first.patient != row.patient else None


def leave_out_second_patients(listing: Listing) -> None:
    """Leave out files whose scan is of another patient by an earlier file, with a fault `two_patients`."""
    owners, rows = Owners(), listing.rows
    listing.rows = []
    for row in rows:
        if (first := owners.of_another(row)) is None:
            listing.rows.append(row)
        else:
            detail = f"see {listing.unit} {first.number}"
            listing.faults.append(Fault(row.number, "two_patients", detail, row.shown))

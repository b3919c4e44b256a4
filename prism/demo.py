"""The bundled sample of `prism demo`: short technical documents and a few queries, written for Prism."""

from __future__ import annotations

from prism.types import Document

QUERIES = (
    "How many access keys can a user have?",
    "What exit code does a container show when it runs out of memory?",
    "When are lifecycle rules evaluated?",
)

DOCUMENTS = (
    Document(
        id="rotate-keys",
        title="Rotating access keys",
        text=(
            "An access key should be replaced at least every 90 days. To rotate an access key without downtime,"
            " create a second key for the same user and switch every client to it. Check the last-used date of"
            " the old key until nothing uses it any more. Then deactivate the old key, wait a day, and delete"
            " it. A user can hold at most two keys at a time."
        ),
    ),
    Document(
        id="key-policies",
        title="Policies for access keys",
        text=(
            "A key policy decides which actions a key allows. Policies are attached to users, groups or roles."
            " A request is refused when no policy allows it or when any policy denies it. Prefer roles with"
            " short-lived credentials for programs that run inside the platform."
        ),
    ),
    Document(
        id="bucket-versioning",
        title="Bucket versioning",
        text=(
            "With versioning turned on, a bucket keeps every version of an object. Overwriting a file adds a"
            " new version and leaves the old one in place. To recover an overwritten file, list the versions of"
            " the object and copy the one you want over the current version. Deleted files can be recovered by"
            " removing the delete marker. Each version is billed as an object of its own."
        ),
    ),
    Document(
        id="bucket-lifecycle",
        title="Lifecycle rules",
        text=(
            "A lifecycle rule moves objects to cheaper storage or deletes them after a number of days. Rules"
            " are evaluated once a day, at midnight UTC. A rule can be limited to a prefix or a tag. Moving an"
            " object back from the archive class takes up to 12 hours."
        ),
    ),
    Document(
        id="alert-rules",
        title="Alert rules",
        text=(
            "An alert rule evaluates an expression at a fixed interval. Without a waiting period, the alert"
            " fires on the first evaluation that returns a value, so a short spike is enough. Set a waiting"
            " period with `for: 5m`: the expression must then hold for five minutes before the alert fires."
            " Labels decide which team is notified."
        ),
    ),
    Document(
        id="dashboards",
        title="Dashboards",
        text=(
            "A dashboard shows panels in rows. Each panel runs one or more queries over the chosen time range."
            " Variables at the top of a dashboard change all panels at once. Export a dashboard as JSON to keep"
            " it under version control."
        ),
    ),
    Document(
        id="borrow-checker",
        title="The borrow checker",
        text=(
            "The borrow checker makes sure that references never outlive the value they point to. At any time a"
            " value has either one mutable reference or any number of shared ones. When the compiler reports"
            " that a value does not live long enough, move the value to an outer scope or return it instead of a"
            " reference."
        ),
    ),
    Document(
        id="wsl-mount",
        title="Mounting a disk in WSL",
        text=(
            "To read a Linux disk from Windows, attach it with `wsl --mount`. List the disks first and pass the"
            " path of the physical drive. The command needs an administrator's terminal. Unmount the disk before"
            " you unplug it, or files may be damaged."
        ),
    ),
    Document(
        id="container-limits",
        title="Memory limits of containers",
        text=(
            "A container that uses more memory than its limit is stopped by the kernel and shows exit code 137."
            " A request reserves memory for scheduling, a limit caps what may be used. Set both from what the"
            " program was seen to use under load."
        ),
    ),
)

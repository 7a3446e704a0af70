/** An error whose message is written for the visitor. */
export class Sentence extends Error {}

/** The text to show for any error. */
export function told(error) {
  return error instanceof Sentence ? error.message : `Something went wrong: ${error?.message ?? error}`;
}
